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
options=(--width 192 --heads 6 --blocks 6 --from-start 0.5
    --report-every 500 --log $log)

cargo build --release
scripts/fetch-data.sh mnist "$data"
data=$data/mnist
# 1. Trainings from random initialisations, and a first G.pt on them.
step $lopt record mnist --data "$data" --out "$runs/mnist" --precision f16 --runs 4000 \
    --saves 30 --spacing 2
[ -e "$runs/mnist-first.safetensors" ] ||
    step $lopt train mnist --data "$data" --store "$runs/mnist" \
        --out "$runs/mnist-first.safetensors" "${options[@]}" --steps 5000 \
        --by-metric 0.3 --sampler-steps 6 --temperature 0.3
# 2. Trainings from its samples, which updates in a row will start at; trainings that keep more
#    of their first steps, where losses in the middle of the range lie; the G.pt for losses.
step $lopt record mnist --data "$data" --out "$runs/mnist-samples" --precision f16 --runs 1500 \
    --saves 30 --spacing 2 --start-from "$runs/mnist-first.safetensors" --from-run 0
step $lopt record mnist --data "$data" --out "$runs/mnist-early" --precision f16 --runs 1000 \
    --saves 40 --spacing 3 --seed 1
stores=(--store "$runs/mnist" --store "$runs/mnist-samples" --store "$runs/mnist-early")
[ -e "$runs/mnist-loss.safetensors" ] ||
    step $lopt train mnist --data "$data" "${stores[@]}" --out "$runs/mnist-loss.safetensors" \
        "${options[@]}" --init "$runs/mnist-first.safetensors" --steps 7000 \
        --learning-rate 1.5e-3 --by-metric 0.3 --sampler-steps 6 --temperature 0.3
# 3. From the G.pt for losses the one for errors: from runs with early checkpoints, and with less
#    and less of the behavioural loss, which draws errors in the middle of the range down.
dense=(--store "$runs/mnist-samples" --store "$runs/mnist-early")
errors() { # name, --init, further options
    local out=$runs/$1.safetensors init=$runs/$2.safetensors
    shift 2
    [ -e "$out" ] || step $lopt train mnist --data "$data" --metric error --init "$init" --out "$out" \
        "${options[@]}" --sampler-steps 4 --temperature 1 "$@"
}
errors mnist-error-1 mnist-loss "${stores[@]}" --steps 3000 --learning-rate 1e-3 --by-metric 0.7 --behavior 0.1
errors mnist-error-2 mnist-error-1 "${dense[@]}" --steps 2000 --learning-rate 8e-4 --by-metric 0.6 --behavior 0.05
errors mnist-error mnist-error-2 "${dense[@]}" --steps 1800 --learning-rate 1e-3 --by-metric 0.8 --behavior 0
step $lopt compare mnist --data "$data" --weights "$runs/mnist-loss.safetensors" --baseline-networks 16 \
    --steps 3000 --out "$runs/mnist.html" --figure benches/mnist-loss.svg | tee -a $log
for metric in loss error; do
    step $lopt eval mnist --data "$data" --weights "$runs/mnist-$metric.safetensors" \
        --out "$runs/mnist-$metric-eval.html" | tee -a $log
done
for figure in "initialisations --networks 32" "diversity --trainings 8 --temperature 1" "walk --frames 32 --strip benches/figures/mnist-walk-strip.svg"; do
    # shellcheck disable=SC2086
    $lopt ${figure%% *} mnist --data "$data" --weights "$runs/mnist-loss.safetensors" \
        --out "$runs/mnist-${figure%% *}.html" \
        --figure "benches/figures/mnist-${figure%% *}.svg" ${figure#* } | tee -a benches/figures/mnist-figures.log
done
