#!/usr/bin/env bash
# MNIST, the network 784-10-10 of the G.pt paper: records runs, trains G.pts that are
# conditioned on loss and on error, and makes the figures of benches/RESULTS.md.
# Two hours or less on two cores that do nothing else. Interrupted, it goes on where it was.
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
# 1. Trainings from random initialisations, and a first G.pt on them.
step $lopt record mnist --data "$data" --out "$runs/mnist" --precision f16 --runs 4000
[ -e "$runs/mnist-first.safetensors" ] ||
    step $lopt train mnist --store "$runs/mnist" --out "$runs/mnist-first.safetensors" \
        "${model[@]}" --steps 6000 --report-every 500 --log $log
# 2. More of them, and trainings from its samples, which updates in a row will start at.
step $lopt record mnist --data "$data" --out "$runs/mnist" --precision f16 --runs 6088 \
    --start-from "$runs/mnist-first.safetensors" --from-run 5200
# 3. On from the first G.pt; in the end with more pairs that go from an initialisation to
#    the end of a run. Sampler steps and temperature: benches/RESULTS.md.
[ -e "$runs/mnist-second.safetensors" ] ||
    step $lopt train mnist --store "$runs/mnist" --out "$runs/mnist-second.safetensors" \
        "${model[@]}" --init "$runs/mnist-first.safetensors" --steps 8000 \
        --learning-rate 1.5e-3 --report-every 500 --log $log
step $lopt train mnist --store "$runs/mnist" --out "$runs/mnist-loss.safetensors" "${model[@]}" \
    --init "$runs/mnist-second.safetensors" --steps 5000 --learning-rate 1.2e-3 \
    --from-start 0.5 --by-metric 0.2 --sampler-steps 6 --temperature 0.3 --report-every 500 --log $log
# 4. From the G.pt for losses the one for errors.
step $lopt train mnist --store "$runs/mnist" --out "$runs/mnist-error.safetensors" "${model[@]}" \
    --init "$runs/mnist-loss.safetensors" --metric error --steps 2000 --learning-rate 1e-3 \
    --from-start 0.5 --by-metric 0.3 --sampler-steps 6 --temperature 0.6 --report-every 500 --log $log
for metric in loss error; do
    weights=$runs/mnist-$metric.safetensors
    step $lopt compare mnist --data "$data" --weights "$weights" --baseline-networks 16 --out "$runs/mnist-$metric.html" \
        --figure benches/mnist-$metric.svg | tee -a $log
    step $lopt eval mnist --data "$data" --weights "$weights" \
        --out "$runs/mnist-$metric-eval.html" | tee -a $log
done
for figure in "initialisations --networks 32" "diversity --trainings 8" "walk --frames 32 --strip benches/figures/mnist-walk-strip.svg"; do
    # shellcheck disable=SC2086
    $lopt ${figure%% *} mnist --data "$data" --weights "$runs/mnist-loss.safetensors" \
        --sampler-steps 4 --temperature 1 --out "$runs/mnist-${figure%% *}.html" --figure "benches/figures/mnist-${figure%% *}.svg" \
        ${figure#* } | tee -a benches/figures/mnist-figures.log
done
