#!/usr/bin/env bash
# MNIST, the network 784-10-10 of the G.pt paper: records runs, trains G.pts that are
# conditioned on loss and on error, and makes the figures of benches/RESULTS.md.
# Two hours on two cores. Interrupted, it goes on where it was.
#
#   scripts/mnist.sh [RUNS] [DATA]   RUNS (default: runs) takes stores, weights and reports,
#                                    DATA (default: data-sets) the images
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
data=${2:-data-sets}
log=benches/mnist.log
lopt=target/release/lopt
mkdir -p "$runs"

step() { printf '%s  %s\n' "$(date -u +%H:%M:%S)" "$*" | tee -a $log; "$@"; }
model=(--width 192 --heads 6 --blocks 6)

cargo build --release
scripts/fetch-data.sh mnist "$data"
data=$data/mnist
# 1. Trainings from random initialisations.
step $lopt record mnist --data "$data" --out "$runs/mnist" --precision f16 --runs 4000
# 2. A first G.pt on them.
[ -e "$runs/mnist-first.safetensors" ] ||
    step $lopt train mnist --store "$runs/mnist" --runs 4000 --out "$runs/mnist-first.safetensors" \
        "${model[@]}" --steps 6000
# 3. Trainings from its samples, which updates in a row will start at.
step $lopt record mnist --data "$data" --out "$runs/mnist" --precision f16 --runs 5200 \
    --start-from "$runs/mnist-first.safetensors" --from-run 4000
# 4. The G.pt for losses, on from the first one, and from it the one for errors.
step $lopt train mnist --store "$runs/mnist" --out "$runs/mnist-loss.safetensors" "${model[@]}" \
    --init "$runs/mnist-first.safetensors" --steps 9000 --report-every 1000 --log $log
step $lopt train mnist --store "$runs/mnist" --out "$runs/mnist-error.safetensors" "${model[@]}" \
    --init "$runs/mnist-loss.safetensors" --metric error --steps 3000 --report-every 1000 --log $log
for metric in loss error; do
    weights=$runs/mnist-$metric.safetensors
    step $lopt compare mnist --data "$data" --weights "$weights" --out "$runs/mnist-$metric.html" \
        --figure benches/mnist-$metric.svg | tee -a $log
    step $lopt eval mnist --data "$data" --weights "$weights" \
        --out "$runs/mnist-$metric-eval.html" | tee -a $log
done
