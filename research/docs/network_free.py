"""Print the rank accuracy of maps that know no network, on the lines of the benchmark.

python research/docs/network_free.py
"""

from __future__ import annotations

from cnnlab.data.ground_truth import LineTruths
from cnnlab.interpret.metrics import rank_accuracy, sobel

if __name__ == "__main__":
    for scene in ("plain", "distractor", "noise", "correlated"):
        data = LineTruths(count=24, background=scene)
        saturation = data.images.amax(dim=1) - data.images.amin(dim=1)
        maps = {
            "Sobel edges": sobel(data.images),
            "brightness": data.images.amax(dim=1),
            "saturation": saturation,
            "Sobel edges of saturation": sobel(saturation[:, None]),
        }
        for name, values in maps.items():
            print(f"{scene:12}{name:28}", end="")
            for head in data.heads:
                print(f"{head.name} {rank_accuracy(values, data.counterfactuals[head.name]).nanmean():.2f}  ", end="")
            print()
