#!/usr/bin/env bash
# With a learning rate in a tensor, pytorch_warmup's warm-up lowers the rate from step to step, and it never comes back.
#
# Versions: torch 2.13.0, pytorch_warmup 0.2.0, torchao 0.18.0 (whose optimizers make lr a tensor whatever they are given).
# Guess: warm-up over 10 steps gives a tenth of lr, two tenths, and so on to lr, as a float or as a tensor. Compiled steps under a
#   scheduler need lr in a tensor, and the warm-up's own dampening() puts back the full lr before each scheduler's step.
# Behaviour: what it keeps as the full lr is the group's tensor itself, and dampening is group["lr"] *= factor, which for a tensor is in
#   place. So it dampens what it has kept, and the factors multiply: after a warm-up of 10 steps lr is 10!/10^10 of what was asked for,
#   and after one of 200 steps it is 0 in float32. A scheduler that goes on from the last lr (here a cosine) inherits that; one that
#   computes it from the first (LambdaLR) writes the tensor anew each step and hides it.
# Output (lr after so many steps of a warm-up of 10, over the lr asked for; then after a warm-up of 200):
#                                   1       2       5       10      20      | 200
#   AdamW, float                    0.1     0.2     0.5     1       1       | 1
#   AdamW, tensor                   0.1     0.02    0.0012  0.00036 0.00036 | 0
#   AdamW, tensor, cosine           0.1     0.02    0.0012  0.00036 0.00036 | 0
#   AdamW, tensor, LambdaLR         0.1     0.2     0.5     1       1       | 1
#   torchao AdamW8bit, lr a float   0.1     0.02    0.0012  0.00036 0.00036 | 0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy pytorch_warmup==0.2.0
"$dir/venv/bin/pip" install --quiet --no-compile --no-deps torchao==0.18.0

TORCHDYNAMO_DISABLE=1 "$dir/venv/bin/python" -W ignore - 2>"$dir/err" <<'PY' || { cat "$dir/err" >&2; exit 1; }
import sys

import pytorch_warmup
import torch
import torchao.optim

LR = 1e-3


def rates(kind, lr, schedule, period, shown):
    param = torch.nn.Parameter(torch.zeros(4))
    optimizer = kind([param], lr=lr)
    scheduler = schedule(optimizer)
    warmup = pytorch_warmup.LinearWarmup(optimizer, period)
    out = []
    for step in range(1, max(shown) + 1):
        if step in shown:
            out.append(float(optimizer.param_groups[0]["lr"]) / LR)
        param.grad = torch.ones(4)
        optimizer.step()
        with warmup.dampening():
            if scheduler is not None:
                scheduler.step()
    return out


def none(optimizer):
    return None


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100_000)


def constant(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


same = True
print(" " * 32 + "".join(f"{step:<8}" for step in (1, 2, 5, 10, 20)) + "| 200")
for name, kind, tensor, schedule, sinks in (
    ("AdamW, float", torch.optim.AdamW, False, none, False),
    ("AdamW, tensor", torch.optim.AdamW, True, none, True),
    ("AdamW, tensor, cosine", torch.optim.AdamW, True, cosine, True),
    ("AdamW, tensor, LambdaLR", torch.optim.AdamW, True, constant, False),
    ("torchao AdamW8bit, lr a float", torchao.optim.AdamW8bit, False, none, True),
):
    seen = []
    for period, shown in ((10, (1, 2, 5, 10, 20)), (200, (200,))):
        seen += rates(kind, torch.tensor(LR) if tensor else LR, schedule, period, shown)
    print(f"{name:<32}" + "".join(f"{rate:<8.2g}" for rate in seen[:-1]) + f"| {seen[-1]:.2g}")
    same &= (seen[4] < 0.001 and seen[5] == 0) if sinks else all(abs(rate - 1) < 1e-3 for rate in seen[3:])
if not same:
    sys.exit("the behaviour has changed")
PY
