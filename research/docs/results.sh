#!/usr/bin/env bash
# Trains everything that docs/results.md reports, into <folder>/<name>/<seed>, then fills its tables:
#   bash research/docs/results.sh <folder>          (about six hours on two cores)
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
    multihead_report_b multihead_v1 multihead_v2 multihead_v3 multihead_figure5 multihead_hue_blind; do
    train $name $seed experiment=$name
  done
  for name in v1 v2 v3; do
    train multihead_${name}_theirs $seed experiment=multihead_$name data=lines_report_a
    train multihead_${name}_hard $seed experiment=multihead_$name data.style=hard
  done
  train multihead_figure5_theirs $seed experiment=multihead_figure5 data=lines_report_b
  train multihead_figure5_hard $seed experiment=multihead_figure5 data.style=hard

  mixed='data.style=mixed data.test_style=antialiased'
  jitter='data.jitter={length:0.4,width:0.7,angle:5}'
  plain='data.jitter={length:0.0,width:0.0,angle:0.0}'
  train multihead_mixed $seed experiment=multihead_report_b $mixed
  train multihead_jitter $seed experiment=multihead_report_b $mixed "$jitter"
  train anywhere_plain $seed experiment=multihead_anywhere data.style=antialiased "$plain"
  train anywhere_mixed $seed experiment=multihead_anywhere "$plain"
  train multihead_anywhere $seed experiment=multihead_anywhere
  train anywhere_light $seed experiment=multihead_anywhere augment=light
  for name in multihead_report_b multihead_mixed multihead_jitter anywhere_plain anywhere_mixed multihead_anywhere anywhere_light; do
    [ -e "$root/$name/$seed/robustness" ] || "$python" -m research.renderers run="$root/$name/$seed" per_kind=100
  done
  train multihead_report_b_region $seed experiment=multihead_report_b data.holdout=region
  train multihead_mixed_region $seed experiment=multihead_report_b data.holdout=region $mixed
  train multihead_anywhere_region $seed experiment=multihead_anywhere data.holdout=region

  for name in mnist multihead_report_b; do
    train ${name}_float32 $seed experiment=$name trainer.precision=32-true
  done
  for base in multihead_report_b multihead_hue_blind; do
    train add_colour_$base $seed experiment=add_colour init_from="$root/$base/$seed"
  done
done
for seed in 0 1 2 3 4; do  # in turns, on an idle machine
  train base/multihead_report_b $seed experiment=multihead_report_b
  train base/multihead $seed experiment=multihead
done
for seed in $(seq 0 19); do
  train multihead_seeds $seed experiment=multihead threads=1
done
for seed in 0 1 2; do
  train multihead_07 $seed experiment=multihead net.relu_before_bn=true optimizer.lr=0.04 trainer.max_epochs=4 threads=1
  train figure5_briefly $seed experiment=multihead_report_b net=shared_figure5 optimizer.lr=0.003 trainer.max_epochs=6 \
    bn_momentum=0.01
  train resnet $seed experiment=multihead_report_b net=resnet optimizer.lr=0.003
done
for name in filters pooling depth decay regularisation weighting holdout; do
  [ -e "$root/sweep_$name" ] || "$python" -m cnnlab.train experiment=sweep_$name hydra.sweep.dir="$root/sweep_$name"
done
"$python" "$here/results.py" "$root"
