#!/usr/bin/env bash
# Makes a folder that is run on a machine with a GPU, without Rust and without a network:
# programs, MNIST, golden files, scripts. Under 60 MB. See README.md beside this.
#
#   scripts/gpu/pack.sh OUT [--dfdx]
#
# --dfdx adds the example `cuda_network` (dfdx's own CUDA device), built by dfdx-cuda.sh.
# LOPT_DATA names a folder with MNIST's IDX files (default: scripts/fetch-data.sh gets them),
# LOPT_FIXTURES the reference's whole set of golden files (default: those in tests/golden alone).
# LOPT_GLIBC is the newest glibc that programs may need (default 2.39, Ubuntu 24.04's).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
with_dfdx=${2:-}
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ "${1#-}" != "$1" ] || [ "${with_dfdx:---dfdx}" != --dfdx ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
if [ -n "$(ls -A "$out")" ] && [ ! -e "$out/about.json" ]; then
    echo "error: $out holds something else, expected an empty folder or one made by this script" >&2
    exit 1
fi
# The caller's paths are relative to where it stands.
data=${LOPT_DATA:+$(cd "$LOPT_DATA" && pwd)}
fixtures=${LOPT_FIXTURES:+$(cd "$LOPT_FIXTURES" && pwd)}
cd "$here/../.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
rm -rf "${out:?}"/*
mkdir -p "$out/bin" "$out/data/mnist"

features="cli,cuda"
# What cargo says of a program, on standard input: the path of the one with this name.
built() {
    python3 -c 'import json, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable") and made["target"]["name"] == sys.argv[1]:
        print(made["executable"])' "$1"
}
put() { # path, name
    cp "$1" "$out/bin/$2"
    strip "$out/bin/$2"
}
cargo build --release --features "$features" --bin lopt --example gpu_speed
put "$CARGO_TARGET_DIR/release/lopt" lopt
put "$CARGO_TARGET_DIR/release/examples/gpu_speed" gpu_speed
put "$(cargo test --release --features "$features" --test reference --no-run \
    --message-format json | built reference)" reference
if [ -n "$with_dfdx" ]; then
    program=$("$here/dfdx-cuda.sh" cargo build --release --features dfdx-cuda \
        --example cuda_network --message-format json | built cuda_network)
    # dfdx compiles some kernels when it runs, with headers whose paths were fixed when it was
    # built: run.py puts them there.
    headers=$(for folder in "$CARGO_TARGET_DIR"/release/build/dfdx-*/out; do
        folder=$(cd "$folder" && pwd)
        if [ -e "$folder/cuda_utils.cuh" ] && grep -qaF "$folder" "$program"; then echo "$folder"; fi
    done | head -1)
    include=$(cd "$CARGO_TARGET_DIR/dfdx-cuda/cuda/include" && pwd)
    mkdir -p "$out/dfdx/kernels" "$out/dfdx/include"
    cp "$headers"/*.cuh "$out/dfdx/kernels/"
    cp "$include"/cuda_fp16.h "$include"/cuda_fp16.hpp "$out/dfdx/include/"
    printf '%s\n' "$headers" "$include" >"$out/dfdx/paths"
    put "$program" cuda_network
fi

if [ -z "$data" ]; then
    scripts/fetch-data.sh mnist data-sets
    data="data-sets/mnist"
fi
for file in {train,t10k}-{images-idx3,labels-idx1}-ubyte; do
    if [ -e "$data/$file" ]; then
        gzip -9nc "$data/$file" >"$out/data/mnist/$file.gz"
    else
        cp "$data/$file.gz" "$out/data/mnist/"
    fi
done
cp -r tests/golden "$out/golden"
if [ -n "$fixtures" ]; then cp -r "$fixtures" "$out/fixtures"; fi
chmod -R u+w "$out"
cp scripts/gpu/{run,speed,peer,programs,tables}.py scripts/gpu/README.md "$out/"

# The newest version of glibc that any of the programs asks for.
glibc=$(for program in "$out"/bin/*; do objdump -T "$program"; done |
    grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -1)
limit=${LOPT_GLIBC:-2.39}
if [ "$(printf '%s\n' "$glibc" "$limit" | sort -V | tail -1)" != "$limit" ]; then
    echo "error: the programs need glibc $glibc, expected at most $limit: build on an older system" >&2
    exit 1
fi
bytes=$(du -sb "$out" | cut -f1)
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ -n "$(git status --porcelain 2>/dev/null)" ]; then commit="$commit, changed"; fi
cat >"$out/about.json" <<JSON
{
 "lopt": "$commit",
 "features": "$features",
 "rustc": "$(rustc --version)",
 "glibc": "$glibc",
 "packed": "$(date -u +%Y-%m-%d)"
}
JSON
echo "$out: $((bytes / 1000000)) MB, needs glibc $glibc; run there: python3 run.py"
if [ "$bytes" -gt 60000000 ]; then
    echo "error: it holds $bytes bytes, expected at most 60000000" >&2
    exit 1
fi
