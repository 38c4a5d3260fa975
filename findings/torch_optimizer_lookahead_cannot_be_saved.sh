#!/usr/bin/env bash
# Lookahead of torch_optimizer trains and takes torch's LR schedulers, but its state_dict() raises.
#
# Versions: torch 2.13.0, torch_optimizer 0.3.0.
# Guess: it is a torch.optim.Optimizer by isinstance and a scheduler accepts it, so its own state_dict() works too; it is a method
#   of the class, with a docstring that says what is in it.
# Behaviour: its constructor never runs Optimizer's, and state_dict() ends in Optimizer's, which reads lists of hooks that only that
#   constructor makes. So hours of training go well, and the first checkpoint fails. The same holds for load_state_dict() and for
#   registering hooks; a parameter group that is added while training has no counter, and the next step raises.
# Output:
#   isinstance of Optimizer      True
#   20 steps with a scheduler    fine
#   state_dict()                 AttributeError: 'Lookahead' object has no attribute '_optimizer_state_dict_pre_hooks'
#   load_state_dict()            AttributeError: 'Lookahead' object has no attribute '_optimizer_load_state_dict_pre_hooks'
#   register_step_post_hook()    AttributeError: 'Lookahead' object has no attribute '_optimizer_step_post_hooks'
#   a step with an added group   KeyError: 'counter'
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy torch_optimizer==0.3.0

"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import torch_optimizer

weights, more = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
base = torch.optim.AdamW([weights], lr=0.01)
optimizer = torch_optimizer.Lookahead(base)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)


def train():
    for _ in range(20):
        weights.grad, more.grad = weights.detach().clone(), more.detach().clone()
        optimizer.step()
        scheduler.step()


def load():
    optimizer.load_state_dict({"fast_state": {}, "slow_state": {}, "param_groups": base.state_dict()["param_groups"]})


def step_with_added_group():
    optimizer.add_param_group({"params": [more]})
    train()


changed = False
print("isinstance of Optimizer     ", isinstance(optimizer, torch.optim.Optimizer))
for name, call, expected in (
    ("20 steps with a scheduler", train, None),
    ("state_dict()", optimizer.state_dict, AttributeError),
    ("load_state_dict()", load, AttributeError),
    ("register_step_post_hook()", lambda: optimizer.register_step_post_hook(print), AttributeError),
    ("a step with an added group", step_with_added_group, KeyError),
):
    error = None
    try:
        call()
    except (AttributeError, KeyError) as caught:
        error = caught
    print(f"{name:28}", "fine" if error is None else f"{type(error).__name__}: {error}")
    changed |= (None if error is None else type(error)) is not expected
if changed:
    sys.exit("the behaviour has changed")
PY
