#!/usr/bin/env bash
# GrokAdamW's first steps get longer from param to param: lr for the first of a group, 10 lr for the fiftieth.
#
# Versions: torch 2.13.0, grokadamw 0.1.2.
# Guess: "momentum decays by layer" (gamma) is about how long the moment remembers. On the first step the bias correction makes a
#   gradient of whatever size a step of lr, as in Adam and for every param; and frozen params change nothing for the others.
# Behaviour: the i-th param's beta1 is 0.9 * 0.9^i, but its moment is corrected by 1 - 0.9^step as if it had been 0.9. A late param's
#   moment is the gradient itself from the first step on and is divided by 0.1. So the first step is 9.6 lr in the thirtieth param,
#   the second still 5.3 lr. i counts the params of a group that have a gradient, so freezing the first ones, or a group for biases, makes
#   the same weights start slower. gamma=0 is right.
# Output (largest step of a param in units of lr, gradient 0.1 in all; the same params in a group of 60):
#                        param 0   param 10  param 30  param 59
#   step 1               1.00      6.86      9.62      9.98
#   step 2               1.00      4.79      5.34      5.36
#   step 20              1.07      1.36      1.37      1.37
#   step 1, gamma=0      1.00      1.00      1.00      1.00
#   step 1, 30 frozen    -         -         1.00      9.58
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$dir/venv/bin/pip" install --quiet --no-deps grokadamw==0.1.2

"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from grokadamw import GrokAdamW

LR = 0.01


def steps(count, frozen=0, **options):
    params = [torch.nn.Parameter(torch.zeros(4)) for _ in range(60)]
    optimizer = GrokAdamW(params, lr=LR, weight_decay=0.0, **options)
    for _ in range(count):
        before = [param.detach().clone() for param in params]
        for param in params[frozen:]:
            param.grad = torch.full((4,), 0.1)
        optimizer.step()
    return [((param - old).abs().max() / LR).item() for param, old in zip(params, before)]


found = {
    "step 1": steps(1),
    "step 2": steps(2),
    "step 20": steps(20),
    "step 1, gamma=0": steps(1, gamma=0.0),
    "step 1, 30 frozen": steps(1, frozen=30),
}
SHOWN = (0, 10, 30, 59)
print(" " * 20, *(f"param {i:<3}" for i in SHOWN))
for name, values in found.items():
    print(f"{name:20}", *(f"{values[i]:<9.2f}" if values[i] else f"{'-':9}" for i in SHOWN))
first, second, late, even, thawed = found.values()
if not (
    0.99 < first[0] < 1.01
    and 6 < first[10] < 8
    and first[30] > 9
    and first[59] > 9.5
    and second[59] > 4
    and 1.05 < late[59] < 1.5
    and max(even) < 1.01
    and thawed[30] < 1.01
    and thawed[59] > 9
):
    sys.exit("the behaviour has changed")
PY
