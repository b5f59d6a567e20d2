#!/usr/bin/env bash
# Everything to run on a machine with a GPU, in one go: the CUDA tests, compute-sanitizer, and the
# benchmark with its JSON. Expects regkern importable with its CUDA library built (the libraries are
# on the stable ABI, so ones built elsewhere for a torch >= 2.11 will do).
#
#     bench/gpu.sh RESULTS_FOLDER
set -uo pipefail
out=${1:?usage: bench/gpu.sh RESULTS_FOLDER}
cd "$(dirname "$0")/.." && mkdir -p "$out"
status=0
python -c 'import regkern, torch; print(regkern.build_info(), torch.cuda.get_device_name())' || exit 1
python -m pytest tests/test_contract.py -k 'gpu or cuda' -rs 2>&1 | tee "$out/tests.txt" || status=1
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 \
      python -m pytest tests/test_contract.py -k same_bits_on_the_gpu 2>&1 | tee "$out/$tool.txt" || status=1
  done
else
  echo 'no compute-sanitizer' | tee "$out/memcheck.txt"
fi
python -m regkern.bench --device cuda --json "$out/bench.json" 2>&1 | tee "$out/bench.txt" || status=1
# Where sparse wins: a step of a sparse layer against the dense one in float32 without and with TF32
# and in bfloat16, and the gradient of a few entries by vectors and by tensor cores.
python -m regkern.bench --device cuda --op 'sparse_linear*' --op 'sddmm*' --dtype float32,bfloat16 \
  --against peers --json "$out/sparse.json" 2>&1 | tee "$out/sparse.txt" || status=1
exit $status
