#!/usr/bin/env bash
# In 8-bit AdamW an element's second moment never falls while a neighbour's gradient stays large: its steps stay 20 times too small.
#
# Versions: torch 2.13.0, torchao 0.18.0, bitsandbytes 0.50.2, on a CPU.
# Guess: 8 bits make each second moment wrong by a percent or some, at random, and it follows the gradient's squares as in 32 bits, with the
#   memory of a thousand steps that beta2 = 0.999 gives. After some thousands of steps nothing is left of an earlier gradient.
# Behaviour: a step takes at most a thousandth off a second moment, and neighbouring codes are 0.7 % apart at the block's largest one, 7 %
#   at a tenth of it, and more below. So the nearest code is the old one, each time, and the moment stays where it was for good. Only the
#   block's scale, a float, can fall, and it follows the largest of the block's 256 elements. A gradient that fell to a fiftieth has
#   steps of 0.043 lr for ever where 32 bits come back to lr (0.043 and 0.96 lr after 8,000 steps with bitsandbytes and torch, run once).
#   To raise a moment, a gradient's square must be at least 4.5 times as large. The first moment, with 0.9, forgets. float8 is no better.
# Output (steps of an element in units of lr; gradient 0.5 for 100 steps, then 0.01, while every other element of the block has 1):
#                               step 100   step 500   step 1000  step 2000
#   torch.optim.AdamW           1.000      0.050      0.081      0.154
#   torchao AdamW8bit           0.999      0.043      0.043      0.043
#   torchao AdamWFp8            1.000      0.038      0.038      0.038
#   bitsandbytes AdamW8bit      0.999      0.043      0.043      0.043
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy packaging
"$dir/venv/bin/pip" install --quiet --no-compile --no-deps torchao==0.18.0 bitsandbytes==0.50.2

# torchao compiles its step; what it computes does not depend on that.
TORCHDYNAMO_DISABLE=1 "$dir/venv/bin/python" -W ignore - 2>"$dir/err" <<'PY' || { cat "$dir/err" >&2; exit 1; }
import sys

import bitsandbytes
import torch
import torchao.optim

SHOWN = (100, 500, 1000, 2000)
LR = 1e-3

torch.set_num_threads(1)


def steps(kind):
    """How far an element moves in the steps shown, over lr."""
    param = torch.nn.Parameter(torch.zeros(4096))
    optimizer = kind([param], lr=LR, weight_decay=0.0)
    out = []
    for step in range(1, SHOWN[-1] + 1):
        param.grad = torch.ones(4096)
        param.grad[1::2] = 0.5 if step <= 100 else 0.01
        before = param[1].item()
        optimizer.step()
        if step in SHOWN:
            out.append((before - param[1].item()) / LR)
    return out


same = True
print(" " * 28 + "".join(f"{f'step {step}':<11}" for step in SHOWN).rstrip())
for name, kind, forgets in (
    ("torch.optim.AdamW", torch.optim.AdamW, True),
    ("torchao AdamW8bit", torchao.optim.AdamW8bit, False),
    ("torchao AdamWFp8", torchao.optim.AdamWFp8, False),
    ("bitsandbytes AdamW8bit", bitsandbytes.optim.AdamW8bit, False),
):
    moved = steps(kind)
    print(f"{name:<28}" + "".join(f"{step:<11.3f}" for step in moved).rstrip())
    same &= abs(moved[0] - 1) < 0.01 and (moved[3] > 2 * moved[1] if forgets else abs(moved[3] / moved[1] - 1) < 0.05)
if not same:
    sys.exit("the behaviour has changed")
PY
