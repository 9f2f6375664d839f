#!/usr/bin/env bash
# The tables of benches/RESULTS.md about tokens and training data: small models of
# one shape, judged on unseen networks and on those of recorded runs. About ten
# minutes on two quiet cores, after scripts/digits.sh has recorded runs.
#
#   scripts/digits-tables.sh [FOLDER]     FOLDER (default: runs) with the recorded runs
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
lopt=target/release/lopt
cargo build --release

# name, options of `lopt train`
row() {
    local name=$1
    shift
    $lopt train digits --store "$runs/digits" --out "$runs/$name.safetensors" --restart \
        --blocks 4 --behavior 0 "$@" --json --quiet >"$runs/$name.train.json"
    for who in unseen seen; do
        local flag=()
        [ $who = seen ] && flag=(--seen)
        $lopt eval digits --weights "$runs/$name.safetensors" "${flag[@]}" --seed 0 --json --quiet \
            --out "$runs/$name.html" >"$runs/$name.$who.json"
    done
    python3 - "$name" "$runs" <<'PY'
import json, sys
name, runs = sys.argv[1:]
train, unseen, seen = (json.load(open(f"{runs}/{name}.{part}.json")) for part in ("train", "unseen", "seen"))
one, own = unseen["one_step"], seen["one_step"]
print(f"| {name} | {train['runs']} | {train['parameters']} | {train['steps']} | {train['seconds']:.0f} "
      f"| {one['test_loss']:.3f} | {one['test_error']:.1f} % | {own['test_loss']:.3f} "
      f"| {unseen['prompt_alignment']:.3f} | {seen['prompt_alignment']:.3f} |", flush=True)
PY
}

echo "| name | runs | parameters | steps | seconds | loss, unseen | error, unseen | loss, seen | alignment, unseen | alignment, seen |"
echo "|---|---|---|---|---|---|---|---|---|---|"
for n in 500 1000 2000 4000; do
    row "units-$n" --runs $n --steps 2000
done
# As many steps as take the same time.
row chunk-within-layer-4000 --runs 4000 --tokens chunk-within-layer --token-length 64 --steps "${STEPS:-700}"
