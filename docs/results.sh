#!/usr/bin/env bash
# Trains everything that docs/results.md reports, into <folder>/<name>/<seed>, then fills its tables:
#   bash docs/results.sh <folder>          (about four hours on two cores)
set -euo pipefail
root=$1
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}

train() {  # <name> <seed> <settings...>
  local folder=$root/$1/$2
  [ -e "$folder/summary.json" ] || "$python" -m cnnlab.train "${@:3}" seed="$2" hydra.run.dir="$folder"
}

for seed in 0 1 2; do
  for name in mnist mnist_5x5 mnist_flat mnist_dropout mnist_deep mnist_best lines lines_deep \
    multihead multihead_v1 multihead_v2 multihead_v3 multihead_figure5 multihead_hue_blind; do
    train $name $seed experiment=$name
  done
  for name in mnist multihead; do
    train ${name}_float32 $seed experiment=$name trainer.precision=32-true
  done
  for base in multihead multihead_hue_blind; do
    train add_colour_$base $seed experiment=add_colour init_from="$root/$base/$seed"
  done
done
for name in filters pooling depth decay regularisation weighting holdout; do
  [ -e "$root/sweep_$name" ] || "$python" -m cnnlab.train experiment=sweep_$name hydra.sweep.dir="$root/sweep_$name"
done
"$python" "$here/results.py" "$root"
