#!/usr/bin/env bash
# Makes weights/cartpole.safetensors: records policies in training and trains a G.pt on
# them, in the folder $1 (default runs/cartpole-bundled). Needs cmake and SDL2_gfx (Debian:
# cmake libsdl2-gfx-dev), and about half an hour on two cores of an Intel Xeon with AVX-512.
# Can be interrupted and started again.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/cartpole-bundled}
mkdir -p "$folder"

cargo build --release --features gym
lopt=target/release/lopt

# About 15 minutes of one core.
"$lopt" record cartpole --out "$folder/runs" --precision f16 --runs 1227

# The G.pt, below a megabyte: about 10 minutes of one core.
"$lopt" train cartpole --store "$folder/runs" --out weights/cartpole.safetensors \
    --log weights/cartpole.log --width 80 --blocks 4 --batch 32 --steps 6000
rm -f weights/cartpole.safetensors.state
"$lopt" calibrate cartpole --weights weights/cartpole.safetensors

weights=(--weights weights/cartpole.safetensors)
"$lopt" eval cartpole "${weights[@]}" --out "$folder/eval.html"
"$lopt" compare cartpole "${weights[@]}" --prompt 500 --baseline-networks 10 \
    --out "$folder/compare.html" --figure benches/cartpole.svg --episode benches/cartpole-episode.svg
