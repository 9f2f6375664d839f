#!/usr/bin/env bash
# G.pt's transformer in lopt, PyTorch (eager and compiled), candle and dfdx: checked to
# give the same outputs, then run by turns. Prints medians and ratios, and rewrites the
# section "Engines" of benches/RESULTS.md. Installs what it needs under target/peers,
# which takes a few minutes and gigabytes the first time.
#
#     benches/peers/run.sh [--json] [--quick] [--configs S,M,L,U] [--rounds 5]
#                          [--seconds 1] [--threads 1,2] [--engines lopt,torch,...]
#
# --json prints one array of rows instead of tables: engine, config, what, threads,
# cpu_ms, wall_ms, ratio_to_torch (CPU time at one thread, wall-clock time at more),
# peak_share, gflops, peak_bytes; with a note instead of figures where an engine failed.
# --quick measures S once and leaves RESULTS.md alone. Progress goes to standard error.
#
# PYTHON names an interpreter that already has requirements.txt, to install nothing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$here/../../target/peers
mkdir -p "$work"
work=$(cd "$work" && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$work/cargo}
(cd "$here" && cargo build --release --locked --bins) >&2

python=${PYTHON:-$work/venv/bin/python}
if [ -z "${PYTHON:-}" ] && ! cmp -s "$here/requirements.txt" "$work/venv/installed.txt"; then
    python3 -m venv "$work/venv" >&2
    "$work/venv/bin/pip" install --disable-pip-version-check -r "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$work/venv/installed.txt"
fi
exec "$python" "$here/compare.py" --bin "$CARGO_TARGET_DIR/release" --work "$work" "$@"
