#!/usr/bin/env bash
# All that is measured on one GPU, in one call of less than nine minutes: the tests that need one, the full-size network,
# a whole run; then what was reached of what is aimed at. Exit code 0 only if all of it went well and was reached.
#
#   bash benchmarks/gpu/measure.sh                 # a CUDA device
#   bash benchmarks/gpu/measure.sh --size tiny     # anywhere: shows that the programs work; nothing is aimed at
#
# OUT: where full_size_forward.json, .png and whole_run.json go; benchmarks/out by default.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export OUT=${OUT:-benchmarks/out}
status=0
step() {
  echo "== $*"
  timeout --kill-after=10 "$@" || { echo "!! exit code $?: $*"; status=1; }
}
[ "$*" ] || step 90 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/actors tests/xsam_model
step 200 "$python" -m benchmarks.gpu.full_size_forward "$@"
step 220 "$python" -m benchmarks.gpu.whole_run "$@"
[ "$*" ] || step 20 "$python" -m benchmarks.gpu.aims "$OUT"
exit $status
