#!/usr/bin/env bash
# SGDW of torch_optimizer subtracts lr * weight_decay from every element instead of decaying it.
#
# Versions: torch 2.13.0, torch_optimizer 0.3.0.
# Guess: as in the paper that its docstring cites, decoupled decay multiplies a weight by a factor below 1. With a zero gradient,
#   lr 0.1 and weight_decay 0.5, a weight of 10 goes to 9.5, 0 stays 0, -10 goes to -9.5.
# Behaviour: the same constant, 0.05, is subtracted from all of them: 0 becomes negative, and negative weights grow without bound.
#   AdamP of the same package does multiply.
# Output:
#   weights            [10.0, 1.0, 0.0, -1.0, -10.0]
#   SGDW, 1 step       [9.95, 0.95, -0.05, -1.05, -10.05]
#   SGDW, 1000 steps   [-40.0, -49.0, -50.0, -51.0, -60.0]
#   AdamP, 1 step      [9.5, 0.95, 0.0, -0.95, -9.5]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy torch_optimizer==0.3.0

"$dir/venv/bin/python" - <<'PY'
import sys

import torch
import torch_optimizer

START = torch.tensor([10.0, 1.0, 0.0, -1.0, -10.0])


def after(kind, steps):
    weights = torch.nn.Parameter(START.clone())
    optimizer = kind([weights], lr=0.1, weight_decay=0.5)
    for _ in range(steps):
        weights.grad = torch.zeros_like(weights)
        optimizer.step()
    return weights.detach()


def shown(values):
    return [round(value, 2) for value in values.tolist()]


once, often = after(torch_optimizer.SGDW, 1), after(torch_optimizer.SGDW, 1000)
adamp = after(torch_optimizer.AdamP, 1)
print("weights           ", shown(START))
print("SGDW, 1 step      ", shown(once))
print("SGDW, 1000 steps  ", shown(often))
print("AdamP, 1 step     ", shown(adamp))
same = torch.allclose(once, START - 0.05) and torch.allclose(often, START - 50, atol=0.01)
if not (same and torch.allclose(adamp, START * 0.95)):
    sys.exit("the behaviour has changed")
PY
