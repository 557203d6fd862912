#!/usr/bin/env bash
# Makes the pictures of docs/gallery.md from two finished runs:
#   bash research/docs/gallery.sh <run of multihead_report_b> <run of mnist with net.kernel_size=5>
set -euo pipefail
gallery=$(cd "$(dirname "$0")/../../docs" && pwd)/gallery
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$gallery"

"$python" -m cnnlab.explain run="$1" out="$work" 'indices=[0,75,59]' 'layers=[stem.conv,angle.conv1]'
"$python" -m cnnlab.explain run="$1" out="$work" 'indices=[0]' 'layers=[angle.conv1]' ascent=plain
"$python" -m cnnlab.explain run="$2" out="$work" 'indices=[0,4,15]' \
  'layers=[stem.conv,stem.relu,stem.pool,stem.dense]'

for number in 1 2 3; do cp "$work/1/heatmaps_$number.png" "$gallery/multihead_heatmaps_$number.png"; done
for name in activations_stem.conv activations_angle.conv1 filters_angle.conv1 filters_angle kernels_stem.conv; do
  cp "$work/1/$name.png" "$gallery/multihead_$name.png"
done
cp "$work/2/filters_angle.conv1.png" "$gallery/multihead_filters_angle.conv1_plain.png"
cp "$work/2/filters_angle.png" "$gallery/multihead_filters_angle_plain.png"
for number in 1 2 3; do cp "$work/3/heatmaps_$number.png" "$gallery/mnist_heatmaps_$number.png"; done
for name in activations_stem.conv activations_stem.relu activations_stem.pool filters_stem.dense filters_digit; do
  cp "$work/3/$name.png" "$gallery/mnist_$name.png"
done
