#!/usr/bin/env bash
# get_optimizer_state_dict, called before the first step, changes the training that follows.
#
# Versions: torch 2.13.0, transformers 5.24.0 (the last row).
# Guess: a function that gets a state reads it. A run that writes a checkpoint at step 0, or that asks for the state only to see
#   which keys a checkpoint must have and then finds none, trains as a run without that call.
# Behaviour: if the optimizer has no state yet, the call makes one by a real step with zero gradients and lr 0, and keeps what that
#   step counted. So step is 1 before training; bias correction, warm-up and SGD's "first step without dampening" are all one step
#   late. AdamW's first step, which is lr whatever the gradient, becomes 0.744 lr. ASGD keeps an eta computed from lr 0, so
#   its first step does nothing. Adafactor of transformers sizes its steps itself by default, and no lr of 0 reaches it:
#   with a weight decay, the call also moves the weights.
# Output (how far one weight is moved by reading, then by the first step):
#   AdamW                  not read: 0.0       then 0.1       read: 0.0       then 0.07441
#   NAdam                  not read: 0.0       then 0.10565   read: 0.0       then 0.1045
#   SGD, dampening 0.5     not read: 0.0       then 0.4       read: 0.0       then 0.2
#   ASGD                   not read: 0.0       then 0.40002   read: 0.0       then 0.0
#   Adafactor, decay 0.1   not read: 0.0       then 0.024     read: 0.004     then 0.02394
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0

"$dir/venv/bin/python" - <<'PY'
import sys

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import Adafactor


def moved(read, kind, **options):
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight.data.fill_(2.0)
    optimizer = kind(model.parameters(), **options)
    if read:
        get_optimizer_state_dict(model, optimizer)
    after_reading = model.weight[0, 0].item()
    model(torch.ones(1, 3)).sum().mul(4.0).backward()
    optimizer.step()
    return [round(2.0 - after_reading, 6), round(after_reading - model.weight[0, 0].item(), 5)]


CASES = [  # name, class, options, whether reading moves the weights
    ("AdamW", torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.0}, False),
    ("NAdam", torch.optim.NAdam, {"lr": 0.1}, False),
    ("SGD, dampening 0.5", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, False),
    ("ASGD", torch.optim.ASGD, {"lr": 0.1}, False),
    ("Adafactor, decay 0.1", Adafactor, {"weight_decay": 0.1}, True),
]
changed = False
for name, kind, options, moves in CASES:
    without, with_read = moved(False, kind, **options), moved(True, kind, **options)
    print(f"{name:22} not read: {without[0]:<9} then {without[1]:<9} read: {with_read[0]:<9} then {with_read[1]}")
    changed |= without[0] != 0.0 or (with_read[0] != 0.0) != moves or without[1] == with_read[1]
if changed:
    sys.exit("the behaviour has changed")
PY
