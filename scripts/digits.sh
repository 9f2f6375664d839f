#!/usr/bin/env bash
# Makes weights/digits.safetensors from nothing: the data is in the repository.
# About an hour on two cores. Interrupted, it goes on where it was.
#
#   scripts/digits.sh [FOLDER]     FOLDER (default: runs) takes the recorded runs
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
lopt=target/release/lopt
mkdir -p "$runs"

step() { printf '%s  %s\n' "$(date -u +%H:%M:%S)" "$*" | tee -a weights/digits.log; "$@"; }

cargo build --release
# 1. Trainings from random initialisations.
step $lopt record digits --out "$runs/digits" --precision f16 --runs 8000
# 2. A first G.pt on them.
step $lopt train digits --store "$runs/digits" --out "$runs/first.safetensors" \
    --steps 1000 --behavior 0
# 3. Trainings from its samples, which updates in a row will start at.
step $lopt record digits --out "$runs/digits" --precision f16 --runs 10000 \
    --start-from "$runs/first.safetensors" --from-run 8000
# 4. The G.pt that comes with lopt.
step $lopt train digits --store "$runs/digits" --out weights/digits.safetensors --precision f16 \
    --steps 30000 --behavior 0 --report-every 1000 --log weights/digits.log
rm weights/digits.safetensors.state
$lopt compare digits --weights weights/digits.safetensors --out "$runs/compare.html" \
    --figure benches/digits.svg | tee -a weights/digits.log
$lopt eval digits --weights weights/digits.safetensors --out "$runs/eval.html" \
    --figure benches/prompting.svg | tee -a weights/digits.log
