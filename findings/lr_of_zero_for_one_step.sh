#!/usr/bin/env bash
# A learning rate of 0 for one step, as at the start of a warm-up, makes the weights NaN, raises, or takes effect one step late.
#
# Versions: torch 2.13.0, pytorch_optimizer 4.1.0, dadaptation 3.2.
# Guess: a step with lr 0 moves no weight, and the step after it is as if nothing had been. Warm-ups count from 0 and cosines end at
#   0, so every optimizer meets that value.
# Behaviour: FTRL of pytorch_optimizer divides by lr: all weights are NaN after one such step, without a word, and stay so. ASGD of
#   the same package divides by it, too, and raises ZeroDivisionError on the step after. DAdaptSGD leaves its sum over lr 0
#   unset and raises UnboundLocalError. torch.optim.ASGD steps with the eta that the step before computed from the lr of that time: a
#   scheduler's lr reaches its weights one step late, so the step with 0 moves them and the next one does not. Adam and
#   DAdaptAdam do as guessed.
# Output (how far each of six steps moves a weight from 2, lr 0 in the fourth):
#   FTRL, pytorch_optimizer   [-0.1, -0.06888, -0.0553, nan, nan, nan]
#   ASGD, pytorch_optimizer   [-0.20199, -0.18161, -0.16326, 'ZeroDivisionError']
#   DAdaptSGD                 [-0.0, -0.0, 0.0, 'UnboundLocalError']
#   torch.optim.ASGD          [-0.20002, -0.18001, -0.16201, -0.14581, 0.0, -0.13122]
#   torch.optim.AdamW         [-0.102, -0.10173, -0.10133, 0.0, -0.10057, -0.09999]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy pytorch_optimizer==4.1.0 dadaptation==3.2

"$dir/venv/bin/python" -W ignore - <<'PY'
import math
import sys

import dadaptation
import pytorch_optimizer
import torch


def moves(kind):
    weights = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = kind([weights], lr=0.1)
    found = []
    for lr in (0.1, 0.1, 0.1, 0.0, 0.1, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        weights.grad, before = weights.detach().clone(), weights.detach().clone()
        try:
            optimizer.step()
        except (ZeroDivisionError, UnboundLocalError) as error:
            return [*found, type(error).__name__]
        found.append(round((weights - before)[1].item(), 5))
    return found


changed = False
for name, kind, expected in (
    ("FTRL, pytorch_optimizer", pytorch_optimizer.FTRL, lambda found: all(map(math.isnan, found[3:]))),
    ("ASGD, pytorch_optimizer", pytorch_optimizer.ASGD, lambda found: found[-1] == "ZeroDivisionError"),
    ("DAdaptSGD", dadaptation.DAdaptSGD, lambda found: found[-1] == "UnboundLocalError"),
    ("torch.optim.ASGD", torch.optim.ASGD, lambda found: found[3] != 0 == found[4]),
    ("torch.optim.AdamW", torch.optim.AdamW, lambda found: found[3] == 0 != found[4]),
):
    found = moves(kind)
    print(f"{name:25} {found}")
    changed |= not expected(found)
if changed:
    sys.exit("the behaviour has changed")
PY
