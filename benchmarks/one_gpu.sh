#!/bin/sh
# What one GPU is to measure, in ten minutes and in this order:
#
#   sh benchmarks/one_gpu.sh [NANOGPT [CORPUS]]
#
# NANOGPT: a checkout of nanoGPT. CORPUS: a folder with IWSLT'14, or a sample of it, cut by BPE. What
# is not given is left out. Every part has a time limit of its own, so one that hangs costs no other.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
part() {
    limit=$1
    shift
    echo "== $*"
    timeout "$limit" "$python" -m "$@" 2>&1 || echo "== ended with $? (124: after $limit s)"
}
part 200 benchmarks.vision --device cuda --preset fast --rounds 2 --epochs 6
[ $# -lt 1 ] || part 220 benchmarks.language --device cuda --preset gpt2 --nanogpt "$1" \
    --rounds 1 --steps 10 --evaluations 3
[ $# -lt 2 ] || part 120 benchmarks.cutoff --device cuda --from "$2" --rounds 5 --steps 20
part 60 benchmarks.gpu_step
