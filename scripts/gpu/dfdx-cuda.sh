#!/usr/bin/env bash
# Runs a command where dfdx's `cuda` feature can be built: on a machine without GPU, driver
# or CUDA toolkit. What it needs is fetched once, from PyPI, into target/dfdx-cuda (300 MB).
#
#   scripts/gpu/dfdx-cuda.sh cargo build --release --features dfdx-cuda
#
# Needs x86-64 Linux, python3 with pip, unzip, gcc. CUDA_COMPUTE_CAP (default 90, an H100 or
# H200) names the oldest GPU that the program shall run on: dfdx compiles its kernels to PTX
# for it. The programs need no CUDA to start: without a driver, dfdx's `Cuda` says so.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
work=$target/dfdx-cuda
root=$work/cuda
if [ $# -eq 0 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
for tool in python3 unzip gcc cargo; do
    command -v "$tool" >/dev/null || { echo "error: $tool is not installed" >&2; exit 1; }
done
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "error: this is $(uname -sm), the wheels and the stubs are for Linux x86_64" >&2
    exit 1
fi
mkdir -p "$work/bin"
work=$(cd "$work" && pwd)
root=$work/cuda

# CUDA 13.0 and not later: a newer nvcc writes PTX that driver 580 does not take.
if [ ! -x "$root/bin/nvcc" ]; then
    rm -rf "$work/wheels" "$work/site" "$root"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$work/wheels" \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    for wheel in "$work"/wheels/*.whl; do unzip -q -o "$wheel" -d "$work/site"; done
    chmod +x "$work"/site/nvidia/cu13/bin/* "$work"/site/nvidia/cu13/nvvm/bin/*
    mv "$work/site/nvidia/cu13" "$root"
    rm -rf "$work/wheels" "$work/site"
fi

# dfdx asks nvidia-smi for the GPU that is in the machine.
cat >"$work/bin/nvidia-smi" <<'SHIM'
#!/bin/sh
cap=${CUDA_COMPUTE_CAP:-90}
printf 'compute_cap\n%s.%s\n' "${cap%?}" "${cap#"${cap%?}"}"
SHIM
chmod +x "$work/bin/nvidia-smi"

# What is linked instead of CUDA's libraries, made from the declarations of dfdx's cudarc.
if [ ! -e "$root/lib64/libcublasLt.a" ]; then
    manifest=$(cd "$here/../.." && cargo metadata --format-version 1 --features dfdx-cuda |
        python3 -c 'import json, sys
print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"]
           if p["name"] == "cudarc" and p["version"].startswith("0.9.")))')
    python3 "$here/lazy_stubs.py" "$(dirname "$manifest")/src" "$root/lib64"
fi

export CUDA_PATH=$root PATH=$work/bin:$root/bin:$PATH
exec "$@"
