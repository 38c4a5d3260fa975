#!/usr/bin/env bash
# Under OneCycleLR, FlashAdamW of pytorch_optimizer decays weights 25 times as fast as weight_decay says.
#
# Versions: torch 2.13.0, pytorch_optimizer 4.1.0, torch-optimi 0.3.3 (for comparison).
# Guess: with decouple_lr=True weight_decay is the share of a weight that a step takes away at the full lr, and a schedule scales it down
#   with lr. Under OneCycleLR, whose highest lr is the lr the optimizer was made with, no step takes more than weight_decay.
# Behaviour: the decay is weight_decay * lr / initial_lr, and initial_lr is an entry of the group that the schedulers of torch write too.
#   To OneCycleLR it is the lr that the cycle starts at, 1/25 of the highest by default. So at the peak the decay is 25 times
#   weight_decay. It depends on div_factor, which is to be about warm-up only. Other schedulers write the constructor's lr there
#   and do no harm. optimi keeps the highest lr under a name of its own, and torch's AdamW has nothing of the kind: both are right.
# Output (zero gradients, 100 steps: the largest share a step takes away over weight_decay, and what is left of a weight of 1):
#   FlashAdamW         CosineAnnealingLR           largest   1.00   left 0.951
#   FlashAdamW         OneCycleLR                  largest  25.00   left 0.282
#   FlashAdamW         OneCycleLR, div_factor=100  largest 100.00   left 0.006
#   optimi.AdamW       CosineAnnealingLR           largest   1.00   left 0.951
#   optimi.AdamW       OneCycleLR                  largest   1.00   left 0.951
#   optimi.AdamW       OneCycleLR, div_factor=100  largest   1.00   left 0.952
#   torch.optim.AdamW  CosineAnnealingLR           largest   1.00   left 0.951
#   torch.optim.AdamW  OneCycleLR                  largest   1.00   left 0.951
#   torch.optim.AdamW  OneCycleLR, div_factor=100  largest   1.00   left 0.952
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy packaging pytorch_optimizer==4.1.0 torch-optimi==0.3.3

"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import optimi
import pytorch_optimizer
import torch
from torch.optim import lr_scheduler

torch.set_num_threads(1)
LR, DECAY, STEPS = 1e-3, 1e-3, 100


def decay(build, schedule):
    weights = torch.nn.Parameter(torch.ones(64))
    optimizer = build([weights])
    scheduler = schedule(optimizer)
    largest = 0.0
    for step in range(STEPS):
        before = weights[0].item()
        weights.grad = torch.zeros_like(weights)
        optimizer.step()
        largest = max(largest, 1 - weights[0].item() / before)
        if step < STEPS - 1:
            scheduler.step()
    return largest / DECAY, weights[0].item()


SCHEDULES = [  # name, scheduler, whether FlashAdamW decays too much under it
    ("CosineAnnealingLR", lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS), False),
    ("OneCycleLR", lambda o: lr_scheduler.OneCycleLR(o, LR, STEPS, cycle_momentum=False), True),
    ("OneCycleLR, div_factor=100", lambda o: lr_scheduler.OneCycleLR(o, LR, STEPS, div_factor=100, cycle_momentum=False), True),
]
CLASSES = [
    ("FlashAdamW", lambda p: pytorch_optimizer.FlashAdamW(p, lr=LR, weight_decay=DECAY, decouple_lr=True)),
    ("optimi.AdamW", lambda p: optimi.AdamW(p, lr=LR, weight_decay=DECAY, decouple_lr=True)),
    ("torch.optim.AdamW", lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=DECAY / LR)),
]
changed = False
for name, build in CLASSES:
    for schedule, scheduler, affected in SCHEDULES:
        largest, left = decay(build, scheduler)
        print(f"{name:18} {schedule:27} largest {largest:6.2f}   left {left:.3f}")
        changed |= (largest > 20) != (affected and name == "FlashAdamW") or (largest > 1.01) != (largest > 20)
if changed:
    sys.exit("the behaviour has changed")
PY
