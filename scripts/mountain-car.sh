#!/usr/bin/env bash
# The figures of benches/RESULTS.md on mountain car: records policies in training, trains
# a G.pt on them and compares it with proximal policy optimization, in the folder $1
# (default runs/mountain-car). Needs cmake and SDL2_gfx (Debian: cmake libsdl2-gfx-dev),
# and about a quarter of an hour on two cores of an Intel Xeon with AVX-512. Can be interrupted and
# started again.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/mountain-car}
mkdir -p "$folder"

cargo build --release --features gym
lopt=target/release/lopt

"$lopt" record mountain-car --out "$folder/runs" --precision f16 --runs 237
weights=$folder/mountain-car.safetensors
"$lopt" train mountain-car --store "$folder/runs" --out "$weights" \
    --width 80 --blocks 4 --batch 32 --steps 3000 --held-out 16
"$lopt" calibrate mountain-car --weights "$weights"
"$lopt" eval mountain-car --weights "$weights" --out "$folder/eval.html"
"$lopt" compare mountain-car --weights "$weights" --prompt -110 --baseline-networks 10 \
    --out "$folder/compare.html" --figure benches/mountain-car.svg \
    --episode benches/mountain-car-episode.svg
