#!/usr/bin/env bash
# Draws three figures of a task: updates of unseen initialisations, samples of one
# network and prompt, and a walk through the sampling noise; their tables go into a log.
#
#   scripts/figures.sh TASK FOLDER [OPTION..]
#   scripts/figures.sh mnist benches/figures --data mnist --weights mnist.safetensors
#
# FOLDER takes TASK-*.svg and TASK-figures.log, OPTIONs go to every command.
set -euo pipefail
cd "$(dirname "$0")/.."
task=$1 folder=$2
shift 2
lopt=target/release/lopt
reports=$(mktemp -d)
trap 'rm -r "$reports"' EXIT
mkdir -p "$folder"
log=$folder/$task-figures.log
: > "$log"

draw() {
    local name=$1 command=$2
    shift 2
    printf '# lopt %s\n' "$command $task $*" | tee -a "$log"
    $lopt "$command" "$task" --out "$reports/$name.html" --figure "$folder/$task-$name.svg" "$@" |
        grep -v '^Report: ' | tee -a "$log"
}

draw initialisations initialisations "$@"
draw diversity diversity "$@"
draw walk walk --strip "$folder/$task-walk-strip.svg" "$@"
draw walk-starts walk --starts --strip "$folder/$task-walk-starts-strip.svg" "$@"
