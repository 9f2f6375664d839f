#!/usr/bin/env bash
# Recording of the task `digits`, `lopt record` against a plain PyTorch loop (recording.py) that
# does the same, by turns. Prints training runs per second, how many times those of PyTorch lopt
# makes, and the test loss and error that the recorded networks end at, which must agree.
#
#     benches/peers/recording.sh [--threads 1] [--rounds 3] [--runs 48]
#
# With one thread, each is one process of one thread, and seconds are CPU time. With more,
# `lopt record` and PyTorch are given that many threads, in a last row PyTorch that many processes
# of one thread each, and seconds are wall-clock time. lopt's include the start of the process and
# the synchronous writing of the store; PyTorch's neither its start nor waiting for the disk.
#
# PYTHON names an interpreter with PyTorch (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
threads=1 rounds=3 runs=48
while [ $# -gt 0 ]; do
    case ${1-} in
        --threads | --rounds | --runs)
            [[ ${2-} =~ ^[1-9][0-9]*$ ]] || { echo "$1 wants a number, 1 or more" >&2; exit 2; }
            declare "${1#--}=$2"
            shift 2
            ;;
        *) echo "there is no $1, expected --threads, --rounds or --runs" >&2; exit 2 ;;
    esac
done
python=${PYTHON:-python3}
export OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads
loops=(loader tensor)
[ "$threads" = 1 ] || loops+=(processes)
cargo build --release --bin lopt
lopt=${CARGO_TARGET_DIR:-target}/release/lopt
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
load=$(cut -d' ' -f1 /proc/loadavg)
for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    TIMEFORMAT='%R %U %S'
    # More runs of lopt: they are short.
    { time "$lopt" record digits --out "$folder/store" --runs $((4 * runs)) --seed "$round" \
        --threads "$threads" --json >"$folder/summary"; } 2>"$folder/time"
    rm -r "$folder/store"
    "$python" - "$folder" >>"$folder/lopt" <<'CODE'
import json
import sys

summary = json.load(open(f"{sys.argv[1]}/summary"))
wall, user, system = map(float, open(f"{sys.argv[1]}/time").read().split())
last = {
    metric["metric"]["kind"]: metric["last"]["mean"]
    for metric in summary["metrics"]
    if metric["metric"]["split"] == "test"
}
report = {"runs": summary["kept"], "wall": wall, "cpu": user + system}
print(json.dumps(report | {"test_loss": last["loss"], "test_error": last["error"]}))
CODE
    for loop in "${loops[@]}"; do
        "$python" benches/peers/recording.py "$loop" "$runs" "$threads" $((round * runs)) \
            >>"$folder/$loop"
    done
done
"$python" - "$folder" "$threads" "$load" "${loops[@]}" <<'CODE'
import datetime
import json
import os
import statistics
import sys

folder, threads, load, *loops = sys.argv[1:]
NAMES = {
    "lopt": "`lopt record`",
    "loader": "PyTorch, batches from a `DataLoader`",
    "tensor": "PyTorch, batches indexed from a tensor",
    "processes": f"the same, {threads} processes",
}
clock = "cpu" if threads == "1" else "wall"


def rates(rounds):
    return [report["runs"] / report[clock] for report in rounds]


def mean(rounds, what):
    return statistics.mean(report[what] for report in rounds)


rounds = {
    name: [json.loads(line) for line in open(f"{folder}/{name}")] for name in ["lopt", *loops]
}
with open("/proc/cpuinfo") as file:
    model = next((line.split(":")[1].strip() for line in file if "model name" in line), "")
print(
    f"{model}, {os.cpu_count()} cores, load {load} at the start; {datetime.date.today()}; "
    f"threads: {threads}, {'CPU' if clock == 'cpu' else 'wall-clock'} time; rounds by turns: "
    f"{len(rounds['lopt'])}; medians, in brackets the lowest and the highest.\n"
)
print("| | runs per second | lopt makes | test loss | test error |\n|---|---|---|---|---|")
ours = rates(rounds["lopt"])
for name, reports in rounds.items():
    own = rates(reports)
    ratios = [a / b for a, b in zip(ours, own)]
    ratio = "" if name == "lopt" else (
        f"{statistics.median(ratios):.1f} times as many ({min(ratios):.1f} to {max(ratios):.1f})"
    )
    print(
        f"| {NAMES[name]} | {statistics.median(own):.2f} | {ratio} | "
        f"{mean(reports, 'test_loss'):.4f} | {mean(reports, 'test_error'):.2f} % |"
    )
CODE
