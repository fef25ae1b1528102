#!/usr/bin/env bash
# The checks that need a GPU, in at most six minutes, and all their ratios at the end.
#
#   bash scripts/gpu_check.sh             on a machine with Python, PyTorch and Lightning
#   DEVICE=cpu bash scripts/gpu_check.sh  with tiny sizes, to try this script
#
# WHEELS names a folder with wheels of what is missing there, for a machine without a network. OUT takes what each part
# prints (default: gpu-check). Each part has a limit of its own, so that a slow one leaves time for the others; parts
# that failed or were cut are named last, and make the exit status 1.
set -uo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python} OUT=${OUT:-gpu-check}
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
mkdir -p "$OUT"

missing='from importlib.util import find_spec as f; exit(None in map(f, "jsonargparse librosa sklearn hypothesis xdist".split()))'
if ! "$PYTHON" -c "$missing"; then
  extra='import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["train"], sep="\n")'
  "$PYTHON" -c "$extra" > "$OUT/requirements.txt"
  printf '%s\n' pytest pytest-xdist hypothesis >> "$OUT/requirements.txt"
  "$PYTHON" -m pip install -q ${WHEELS:+--no-index --find-links "$WHEELS"} -r "$OUT/requirements.txt" || exit 1
fi

if [ "$DEVICE" = cpu ]; then
  loop=(--model mlp --batches 4 --epochs 1 --rounds 1) paper=(--batches 2 --batch-size 2 --width 2 --epochs 1 --rounds 1)
  step=(--width 2 --batch-size 2 --spectrogram 16 16 --frames 1 16 16 --methods BMLR OGMGE) memory=("${step[@]}")
  several=(--model mlp --width 2 --runs 2 --steps 4 --rounds 1) repeats=2 workers=0
  tests=(tests/training/test_waits.py -k "Joint or pandas")
else
  loop=(--accelerator gpu --batches 64 --width 64 --epochs 2 --rounds 3) repeats=15 workers=8
  paper=(--accelerator gpu --batches 16 --width 64 --epochs 2 --rounds 2 --spectrogram 257 188 --frames 3 224 224)
  step=(--width 64 --spectrogram 32 47 --frames 1 28 28) memory=(--width 64 --spectrogram 257 188 --frames 3 224 224)
  several=(--runs 2 8 --steps 50 --rounds 2)
  tests=(tests/conformance/test_contract.py tests/conformance/test_captured_steps.py tests/data/test_augment.py -k gpu)
fi

wrong=()
part() { # name, seconds, command
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout -k 5 "$limit" "$@" > "$OUT/$name.txt" 2> "$OUT/$name.err" || wrong+=("$name")
  echo "$name: $((SECONDS - start)) s of $limit"
}

part tests 80 "$PYTHON" -m pytest -q -p no:cacheprovider -n "$workers" "${tests[@]}"
part loop 45 "$PYTHON" benchmarks/loop.py "${loop[@]}"
# Without a CUDA device there is no graph, and the benchmark says so.
if [ "$DEVICE" = cuda ]; then part graph 40 "$PYTHON" benchmarks/graph.py --batches 30 --rounds 3; fi
part loop-paper 40 "$PYTHON" benchmarks/loop.py "${paper[@]}"
part step 50 "$PYTHON" benchmarks/step.py --device "$DEVICE" --repeats "$repeats" "${step[@]}"
part memory 40 "$PYTHON" benchmarks/memory.py --device "$DEVICE" "${memory[@]}"
part concurrency 35 "$PYTHON" benchmarks/concurrency.py --device "$DEVICE" "${several[@]}"

tail -n 1 "$OUT/tests.txt"
for name in loop graph loop-paper step memory concurrency; do
  [ -f "$OUT/$name.txt" ] || continue
  printf '\n%s\n\n' "$name"
  grep '^|' "$OUT/$name.txt"
done
if [ "${#wrong[@]}" -gt 0 ]; then
  printf '\nFailed or cut: %s. See %s.\n' "${wrong[*]}" "$OUT"
  exit 1
fi
