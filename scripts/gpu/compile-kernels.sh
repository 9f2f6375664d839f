#!/usr/bin/env bash
# Compiles the CUDA kernels with NVRTC for every architecture that is supported, and assembles
# the intermediate code once more with ptxas. Needs no GPU: both come from PyPI's packages.
#
#     scripts/gpu/compile-kernels.sh [FOLDER]
#
# FOLDER takes a virtual environment with NVRTC and ptxas [default: target/nvrtc]; it is made
# where there is none. Where the packages cannot be had this says so and fails with 3.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${1:-target/nvrtc}
architectures=(80 90 120)

if [ ! -e "$folder/ready" ]; then
    if ! python3 -m venv "$folder" ||
        ! "$folder/bin/pip" install --quiet --disable-pip-version-check \
            'nvidia-cuda-nvrtc-cu12==12.9.*' 'nvidia-cuda-nvcc-cu12==12.9.*'; then
        echo "NOT CHECKED: NVRTC and ptxas cannot be had from PyPI, the CUDA kernels were not" \
            "compiled" >&2
        exit 3
    fi
    touch "$folder/ready"
fi

# In the order in which the crate puts them together.
mapfile -t parts < <(sed -n 's/^ *include_str!("\(kernels\/.*\.cu\)"),$/\1/p' \
    src/engine/cuda/kernels.rs)
[ "${#parts[@]}" -gt 0 ]
source=$(mktemp --suffix=.cu)
trap 'rm -f "$source"' EXIT
for part in "${parts[@]}"; do cat "src/engine/cuda/$part"; done >"$source"

"$folder/bin/python" - "$folder" "$source" "${architectures[@]}" <<'PYTHON'
"""NVRTC through its C interface, as the crate calls it, and ptxas on what it makes."""
import ctypes
import glob
import re
import subprocess
import sys
import tempfile

folder, source, *architectures = sys.argv[1:]


def one(pattern):
    found = glob.glob(f"{folder}/lib/python3*/site-packages/nvidia/{pattern}", recursive=True)
    if not found:
        sys.exit(f"{pattern} is not in {folder}")
    return sorted(found)[0]


nvrtc = ctypes.CDLL(one("**/libnvrtc.so*"))
ptxas = one("**/bin/ptxas")
text = open(source, "rb").read()
kernels = re.findall(r'"(\w+)"', open("src/engine/cuda/kernels.rs").read().split("KERNELS")[1])


def compiled(option):
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"lopt.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(f"--gpu-architecture={option}".encode(), b"--std=c++17")
    status = nvrtc.nvrtcCompileProgram(program, 2, options)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status != 0 or log.value.strip():
        sys.exit(f"{option}: {log.value.decode()}")
    return program


def result(program, what):
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    code = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, code) == 0
    return code.raw


major, minor = ctypes.c_int(), ctypes.c_int()
nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
for architecture in architectures:
    machine = result(compiled(f"sm_{architecture}"), "CUBIN")
    ptx = result(compiled(f"compute_{architecture}"), "PTX").rstrip(b"\0")
    missing = [name for name in kernels if f".entry {name}(".encode() not in ptx]
    if missing:
        sys.exit(f"kernels that the crate names and the source has not: {missing}")
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [ptxas, "-v", f"--gpu-name=sm_{architecture}", "-o", "/dev/null", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spilled = re.findall(r"[1-9]\d* bytes spill", said)
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", said))
    print(
        f"sm_{architecture}: {len(kernels)} kernels, {len(machine)} bytes of machine code by "
        f"NVRTC {major.value}.{minor.value}; ptxas: at most {registers} registers, "
        f"{len(spilled)} spills"
    )
PYTHON
