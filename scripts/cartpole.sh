#!/usr/bin/env bash
# Makes weights/cartpole.safetensors: records policies in training and trains a G.pt on
# them, in the folder $1 (default runs/cartpole-bundled). Needs cmake and SDL2_gfx (Debian:
# cmake libsdl2-gfx-dev), and about TIME on two cores of an Intel Xeon with AVX-512, without
# other work on the machine. Can be interrupted and started again.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/cartpole-bundled}
mkdir -p "$folder"

cargo build --release --features gym
lopt=target/release/lopt

# 1500 policies of 60 updates each.
"$lopt" record cartpole --out "$folder/runs" --precision f16

# The G.pt, below a megabyte.
"$lopt" train cartpole --store "$folder/runs" --out weights/cartpole.safetensors \
    --log weights/cartpole.log --width 80 --blocks 4 --steps 8000

"$lopt" eval cartpole --out "$folder/eval.html"
"$lopt" compare cartpole --prompt 500 --out "$folder/compare.html"
