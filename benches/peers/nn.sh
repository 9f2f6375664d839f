#!/bin/sh
# Layers for images against PyTorch eager, by turns: medians over the rounds and
# the ratio of PyTorch's time to lopt's (above 1: lopt is faster).
#
#     benches/peers/nn.sh THREADS [ROUNDS]
#
# PYTHON names an interpreter with PyTorch (default: python3).
set -eu
cd "$(dirname "$0")/../.."
threads=$1
rounds=${2:-5}
python=${PYTHON:-python3}
bench=$(cargo bench --bench nn --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*nn-[^"]*\)".*/\1/p' | tail -1)
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
for _ in $(seq "$rounds"); do
    "$bench" "$threads" >>"$folder/lopt"
    "$python" benches/peers/nn.py "$threads" >>"$folder/torch"
done
"$python" - "$folder" <<'END'
import statistics
import sys


def read(name):
    table = {}
    for line in open(f"{sys.argv[1]}/{name}"):
        case, what, time = line.rstrip("\n").split("\t")
        table.setdefault((case, what), []).append(float(time))
    return {key: statistics.median(times) for key, times in table.items()}


ours, theirs = read("lopt"), read("torch")
print("| | | lopt, ms | PyTorch, ms | ratio |\n|---|---|---|---|---|")
for (case, what), time in ours.items():
    other = theirs[case, what]
    print(f"| {case} | {what} | {time:.3f} | {other:.3f} | {other / time:.2f} |")
END
