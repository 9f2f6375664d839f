#!/usr/bin/env bash
# Fashion-MNIST, the network of convolutions of the G.pt paper: records runs, trains a
# G.pt on them and makes the figures of benches/RESULTS.md. An hour and a half on two cores.
# Interrupted, it goes on where it was.
#
#   scripts/fashion.sh [RUNS] [DATA]   RUNS (default: runs) takes stores, weights and reports,
#                                      DATA (default: data-sets) the images
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
data=${2:-data-sets}
log=benches/fashion.log
lopt=target/release/lopt
mkdir -p "$runs"

step() { printf '%s  %s\n' "$(date -u +%H:%M:%S)" "$*" | tee -a $log; "$@"; }

cargo build --release
scripts/fetch-data.sh fashion-mnist "$data"
data=$data/fashion-mnist
step $lopt record fashion-mnist-cnn --data "$data" --out "$runs/fashion" --precision f16 \
    --runs 2287
[ -e "$runs/fashion-first.safetensors" ] ||
    step $lopt train fashion-mnist-cnn --store "$runs/fashion" --runs 1860 \
        --out "$runs/fashion-first.safetensors" --held-out 40 --steps 2000 \
        --behavior 0 --report-every 250 --log $log
step $lopt train fashion-mnist-cnn --store "$runs/fashion" --out "$runs/fashion.safetensors" \
    --init "$runs/fashion-first.safetensors" --held-out 40 --steps 700 --warmup 50 --behavior 0 \
    --learning-rate 1e-3 --from-start 0.5 --by-metric 0.3 --temperature 0.3 --report-every 100 --log $log
step $lopt compare fashion-mnist-cnn --data "$data" --weights "$runs/fashion.safetensors" \
    --baseline-networks 4 --steps 300 --out "$runs/fashion.html" \
    --figure benches/fashion.svg | tee -a $log
step $lopt eval fashion-mnist-cnn --data "$data" --weights "$runs/fashion.safetensors" \
    --out "$runs/fashion-eval.html" | tee -a $log
