#!/usr/bin/env bash
# Everything that is measured on a GPU, in one go: bash benchmarks/gpu.sh CHECKOUT-OF-THE-AUTHORS [OUT]
# A try on a CPU: DEVICE=cpu PRECISION=fp32 SIZE=28 BATCH=2 ROUNDS=2 COMPILE= bash benchmarks/gpu.sh …
# The marks: at least 2.5 times the authors' step, and 45 % of the measured peak in bf16.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
authors=$1 out=${2:-build/gpu-results}
device=${DEVICE:-cuda} precision=${PRECISION:-bf16} size=${SIZE:-224} rounds=${ROUNDS:-16}
compile=${COMPILE---compile}
mkdir -p "$out"
step() {
  local name=$1 student=$2 teacher=$3 batch=$4
  echo "== $name"
  # shellcheck disable=SC2086  # no word where nothing is compiled
  python benchmarks/step.py --student "$student" --teacher "$teacher" --image-size "$size" \
    --batch-size "${BATCH:-$batch}" --device "$device" --precision "$precision" --rounds "$rounds" \
    --authors "$authors" $compile --json "$out/step-$name-$device.json" ||
    echo "== $name failed" # what was measured of the others is kept
}
step ti-s vit_tiny_patch14 vit_small_patch14 256
step s-b vit_small_patch14 vit_base_patch14 128
step b-l vit_base_patch14 vit_large_patch14 64
python benchmarks/students.py --device "$device" --precision "$precision" --image-size "$size" \
  --batch-size "${BATCH:-128}" --rounds "${ROUNDS:-5}" | tee "$out/students.txt"
