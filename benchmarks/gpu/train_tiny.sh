#!/usr/bin/env bash
# Trains xsam-tiny at 256 pixels on one GPU in calls of less than ten minutes, each going on where the last one stopped;
# the call in which training ends also tests the model on every split and writes it, in float16, with its figures.
#
#   bash benchmarks/gpu/train_tiny.sh            # again until it prints "trained"; exit code 3 means: call again
#   bash benchmarks/gpu/train_tiny.sh --smoke    # the same steps within minutes on a CPU, to see that all of it works
#
# XSAM_ASSETS: folder of the scenes' pictures (python -m xsam_model.training.scenes.art.prepare --output FOLDER)
# OUT:         where results go; benchmarks/out by default. Training's own files stay in benchmarks/out/train-tiny.
# MINUTES:     of training in this call; 8 by default.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
out=${OUT:-benchmarks/out} minutes=${MINUTES:-8} count=160 config=benchmarks/out/train-tiny.toml
folder=benchmarks/out/train-tiny
assets=${XSAM_ASSETS:-$HOME/.cache/xsam-label/scenes}
mkdir -p "$out" benchmarks/out
sed "s|arguments = {|arguments = { assets = \"$assets\",|" examples/train_tiny_256.toml > "$config"
if [ "${1:-}" = --smoke ]; then
  folder=benchmarks/out/train-tiny-smoke minutes=3 count=4
  sed -i -E 's/^steps = .*/steps = 2/; s/^batch_size = .*/batch_size = 2/; s/^workers = .*/workers = 0/; s/"bfloat16"/"float32"/' "$config"
fi
status=0
"$python" -m xsam_model.training --config "$config" --output "$folder" --max-minutes "$minutes" || status=$?
for stage in 1-encoder 2-mixed; do
  [ ! -f "$folder/$stage/metrics.csv" ] || cp "$folder/$stage/metrics.csv" "$out/$stage.csv"
done
[ $status = 0 ] || exit $status
"$python" -m xsam_model.training.export_model --model "$folder/2-mixed/model" --output "$out/xsam-tiny"
for split in test unseen_categories unseen_style; do
  parts=ov,vgd,ref,int,gcg,pan
  [ $split = test ] || parts=vgd
  "$python" -m actors.scenes.evaluate --model "$out/xsam-tiny" --assets "$assets" --split $split --side 256 \
    --count $count --only $parts --json "$out/$split.json"
done
# In parts, for where large files cannot be moved: cat model.safetensors.part-* > model.safetensors
(cd "$out/xsam-tiny" && split -b 15M model.safetensors model.safetensors.part- && rm model.safetensors)
echo "trained: $out/xsam-tiny"
