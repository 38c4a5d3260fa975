#!/usr/bin/env bash
# A learning rate in a tensor, which compiled and captured steps need, comes out of long schedules percents away from the same lr as a float.
#
# Versions: torch 2.13.0.
# Guess: a scheduler gives the same lr whether the group has a float or a tensor, to the last place of a float32: within 1e-5 after
#   however many steps, as schedules are written down as functions of the step.
# Behaviour: ExponentialLR, MultiplicativeLR, LinearLR, PolynomialLR and CosineAnnealingLR compute the next lr from the last one, and
#   with a tensor the last one is what was rounded to float32. A factor of 1 - 5e-5 moves a float32 by some hundreds of its last
#   places, and each step rounds up to half of one, mostly to the same side for a long time. So the error grows with the length of the run:
#   0.2 % after 100,000 steps of an exponential decay, 1.5 % after 1,000,000 of the same decay made ten times slower (run once, not here).
#   LambdaLR, OneCycleLR and CosineAnnealingWarmRestarts compute from the first lr and are right. So is a float64 tensor, always.
# Output (100,000 steps from lr 1e-3; the lr at the end as a float, and how far off it is as a float32 and as a float64 tensor):
#   ExponentialLR                 float 1.00462e-05   float32 tensor -0.23724 %   float64 tensor +0.00000 %
#   MultiplicativeLR              float 1.00462e-05   float32 tensor -0.23724 %   float64 tensor +0.00000 %
#   PolynomialLR                  float 1.00000e-06   float32 tensor -0.05387 %   float64 tensor +0.00000 %
#   LinearLR                      float 1.09900e-05   float32 tensor +0.05077 %   float64 tensor +0.00000 %
#   LambdaLR                      float 1.00462e-05   float32 tensor +0.00001 %   float64 tensor +0.00000 %
#   OneCycleLR                    float 8.93528e-09   float32 tensor +0.00000 %   float64 tensor +0.00000 %
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy

"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from torch.optim import lr_scheduler

torch.set_num_threads(1)
STEPS = 100_000
FACTOR = 1e-2 ** (1 / STEPS)


def last(schedule, lr):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule(optimizer)
    for _ in range(STEPS - 100):
        scheduler.step()
    return float(optimizer.param_groups[0]["lr"])


changed = False
for name, drifts, schedule in (  # name, whether float32 is more than 0.01 % off, scheduler
    ("ExponentialLR", True, lambda o: lr_scheduler.ExponentialLR(o, FACTOR)),
    ("MultiplicativeLR", True, lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: FACTOR)),
    ("PolynomialLR", True, lambda o: lr_scheduler.PolynomialLR(o, STEPS, 1.0)),
    ("LinearLR", True, lambda o: lr_scheduler.LinearLR(o, 1.0, 1e-2, STEPS)),
    ("LambdaLR", False, lambda o: lr_scheduler.LambdaLR(o, lambda step: FACTOR**step)),
    ("OneCycleLR", False, lambda o: lr_scheduler.OneCycleLR(o, 1e-3, STEPS, cycle_momentum=False)),
):
    true = last(schedule, 1e-3)
    narrow, wide = (100 * (last(schedule, torch.tensor(1e-3, dtype=dtype)) / true - 1) for dtype in (torch.float32, torch.float64))
    print(f"{name:29} float {true:.5e}   float32 tensor {narrow:+.5f} %   float64 tensor {wide:+.5f} %", flush=True)
    changed |= (abs(narrow) > 0.01) != drifts or abs(wide) > 1e-5
if changed:
    sys.exit("the behaviour has changed")
PY
