#!/usr/bin/env bash
# IVON's first step after a checkpoint is about ten times too long: its count of steps is not in the state, only what it corrects.
#
# Versions: torch 2.13.0, ivon-opt 0.1.3.
# Guess: a run that loads model, optimizer and the generator of random numbers goes on bit for bit. IVON keeps its momentum and its
#   Hessian in the groups, and both are in the file and come back.
# Behaviour: the momentum is divided by 1 - beta1^t, and t is an attribute that state_dict() leaves out. After load_state_dict t counts
#   from 1 again, while the momentum is that of a long run: the first step is 1 / (1 - 0.9) = 10 times the step of the run that goes on,
#   the second 5 times, the fifth still 2.4 times. There is no warning. Setting optimizer.current_step by hand makes the bits
#   equal; debias=False, for the whole run, has nothing to lose.
# Output (steps after a resume at step 200, as a multiple of the run's that goes on):
#                             first    second   fifth    bits equal
#   loaded                    10.00    5.26     2.44     False
#   loaded, current_step set  1.00     1.00     1.00     True
#   debias=False, loaded      1.00     1.00     1.00     True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$dir/venv/bin/pip" install --quiet --no-deps ivon-opt==0.1.3

"$dir/venv/bin/python" -W ignore - <<'PY'
import copy
import sys

import torch
from ivon import IVON

SAVED = 200


def new(values, **options):
    param = torch.nn.Parameter(values.clone())
    return param, IVON([param], lr=1e-3, ess=1e6, hess_init=0.5, **options)


def train(optimizer, param, steps):
    """The loss falls by the same slope everywhere, so that steps are as long as the momentum says."""
    lengths = []
    for step in steps:
        torch.manual_seed(step)
        before = param.detach().clone()
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            param.sum().backward()
        optimizer.step()
        lengths.append((param - before).abs().mean().item())
    return lengths


def resumed(counted=False, **options):
    straight, whole = new(torch.ones(8), **options)
    train(whole, straight, range(SAVED))
    half, file = straight.detach().clone(), copy.deepcopy(whole.state_dict())
    after = range(SAVED, SAVED + 5)
    theirs = train(whole, straight, after)
    param, optimizer = new(half, **options)
    optimizer.load_state_dict(file)
    if counted:
        optimizer.current_step = SAVED
    ours = train(optimizer, param, after)
    return [mine / right for mine, right in zip(ours, theirs)], torch.equal(param, straight)


found = {
    "loaded": resumed(),
    "loaded, current_step set": resumed(counted=True),
    "debias=False, loaded": resumed(debias=False),
}
print(" " * 25, "first    second   fifth    bits equal")
for name, (times, equal) in found.items():
    print(f"{name:25} {times[0]:<8.2f} {times[1]:<8.2f} {times[4]:<8.2f} {equal}")
loaded, counted, without = found.values()
if not (9 < loaded[0][0] < 11 and 4.5 < loaded[0][1] < 6 and not loaded[1] and counted[1] and without[1]):
    sys.exit("the behaviour has changed")
PY
