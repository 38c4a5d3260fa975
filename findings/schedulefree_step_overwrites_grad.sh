#!/usr/bin/env bash
# schedulefree's step() leaves its own update in p.grad.
#
# Versions: torch 2.13.0, schedulefree 1.4.1.
# Guess: step() reads p.grad and leaves it alone, as all optimizers of torch.optim do. So gradient norms may be logged after the
#   step, and two optimizers (or two steps) may use one backward pass.
# Behaviour: AdamWScheduleFree's step() overwrites p.grad with the normalised gradient plus the decay, for foreach True and False.
#   After the first step, the gradient's size is lost: it reads 1 whatever it was. SGDScheduleFree adds weight_decay * p to it, and
#   RAdamScheduleFree normalises it once its rectification has started. A second step takes what the first left.
# Output, p.grad after so many steps (the gradient was 0.5 everywhere, the weights 1, -2, 3):
#   torch.optim.AdamW                     1 step: [0.5, 0.5, 0.5]  2: [0.5, 0.5, 0.5]     8: [0.5, 0.5, 0.5]
#   AdamWScheduleFree                     1 step: [1.0, 1.0, 1.0]  2: [1.26, 1.26, 1.26]  8: [0.87, 0.87, 0.87]
#   AdamWScheduleFree, weight_decay 0.1   1 step: [1.1, 0.8, 1.3]  2: [1.38, 0.99, 1.61]  8: [0.89, 0.53, 1.13]
#   SGDScheduleFree                       1 step: [0.5, 0.5, 0.5]  2: [0.5, 0.5, 0.5]     8: [0.5, 0.5, 0.5]
#   SGDScheduleFree, weight_decay 0.1     1 step: [0.6, 0.3, 0.8]  2: [0.69, 0.1, 1.09]   8: [1.17, -1.1, 2.68]
#   RAdamScheduleFree                     1 step: [0.5, 0.5, 0.5]  2: [0.5, 0.5, 0.5]     8: [1.86, 1.86, 1.86]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy schedulefree==1.4.1

"$dir/venv/bin/python" - <<'PY'
import sys

import schedulefree
import torch


def grads(kind, steps=8, **options):
    weights = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = kind([weights], lr=0.1, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    weights.grad = torch.full((3,), 0.5)
    seen = []
    for _ in range(steps):
        optimizer.step()
        seen.append([round(value, 2) for value in weights.grad.tolist()])
    return seen


CASES = [
    ("torch.optim.AdamW", torch.optim.AdamW, {}, False),
    ("AdamWScheduleFree", schedulefree.AdamWScheduleFree, {}, True),
    ("AdamWScheduleFree, weight_decay 0.1", schedulefree.AdamWScheduleFree, {"weight_decay": 0.1}, True),
    ("SGDScheduleFree", schedulefree.SGDScheduleFree, {}, False),
    ("SGDScheduleFree, weight_decay 0.1", schedulefree.SGDScheduleFree, {"weight_decay": 0.1}, True),
    ("RAdamScheduleFree", schedulefree.RAdamScheduleFree, {}, True),
]
changed = False
for name, kind, options, overwrites in CASES:
    seen = grads(kind, **options)
    print(f"{name:37} 1 step: {seen[0]!s:16} 2: {seen[1]!s:19} 8: {seen[-1]}")
    changed |= any(values != [0.5] * 3 for values in seen) != overwrites
    if hasattr(kind, "train"):
        changed |= grads(kind, foreach=False, **options) != seen
if changed:
    sys.exit("the behaviour has changed")
PY
