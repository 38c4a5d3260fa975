#!/usr/bin/env bash
# pytorch_optimizer counts steps per group, so a layer that is unfrozen late gets a first step of the wrong size.
#
# Versions: torch 2.13.0, pytorch_optimizer 4.1.0.
# Guess: bias correction belongs to a parameter's own moments. torch.optim keeps step in each parameter's state, and a weight whose
#   gradients begin at step 1000 (a layer thawed, an expert first chosen, a task's head first used) starts as on step 1.
# Behaviour: step is an entry of the group. The late weight's moments start at zero, but get the correction of step 1000, which is
#   about none. Its first step is 2.5 times too large (AdaBelief, AdamP) or a tenth (Lamb, StableAdamW), and RAdam and SOAP, which
#   spend their first steps measuring, leave that out for it. In torch.optim it does not matter when a weight's gradients begin.
# Output (size of a weight's first step over lr, when its gradients begin at once and at step 1000):
#   torch              AdamW        at once:  1.0000   step 1000:  1.0000
#   torch              RAdam        at once:  0.5000   step 1000:  0.5000
#   pytorch_optimizer  AdaBelief    at once:  1.1111   step 1000:  2.7948
#   pytorch_optimizer  AdamP        at once:  1.0000   step 1000:  2.5153
#   pytorch_optimizer  Lamb         at once: 10.0000   step 1000:  1.0000
#   pytorch_optimizer  RAdam        at once:  0.0000   step 1000:  1.6239
#   pytorch_optimizer  StableAdamW  at once:  1.0000   step 1000:  0.1000
#   pytorch_optimizer  SOAP         at once:  0.0000   step 1000:  0.2401
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy pytorch_optimizer==4.1.0

"$dir/venv/bin/python" - <<'PY'
import sys

import pytorch_optimizer
import torch

torch.set_num_threads(1)


def first_step(kind, waits):
    always, late = (torch.nn.Parameter(torch.full((4, 4), 1.0)) for _ in range(2))
    optimizer = kind([always, late], lr=1e-3, weight_decay=0.0)
    noise = torch.Generator().manual_seed(0)
    for _ in range(waits):
        always.grad = torch.randn(4, 4, generator=noise)
        optimizer.step()
    always.grad = torch.randn(4, 4, generator=noise)
    late.grad = torch.full((4, 4), 0.5)
    optimizer.step()
    return (1.0 - late.detach()).abs().max().item() / 1e-3


changed = False
for kind, depends in (
    (torch.optim.AdamW, False),
    (torch.optim.RAdam, False),
    (pytorch_optimizer.AdaBelief, True),
    (pytorch_optimizer.AdamP, True),
    (pytorch_optimizer.Lamb, True),
    (pytorch_optimizer.RAdam, True),
    (pytorch_optimizer.StableAdamW, True),
    (pytorch_optimizer.SOAP, True),
):
    at_once, after = first_step(kind, 0), first_step(kind, 1000)
    print(f"{kind.__module__.split('.')[0]:17}  {kind.__name__:12} at once: {at_once:7.4f}   step 1000: {after:7.4f}")
    changed |= (abs(at_once - after) > 0.02 * max(at_once, after)) != depends
if changed:
    sys.exit("the behaviour has changed")
PY
