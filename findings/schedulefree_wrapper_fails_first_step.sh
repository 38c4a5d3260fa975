#!/usr/bin/env bash
# schedulefree's wrapper for any optimizer fails on the first step with RMSprop, Adam, AdamW and NAdam.
#
# Versions: torch 2.13.0, schedulefree 1.4.1.
# Guess: ScheduleFreeWrapper(base) trains with every optimizer of torch.optim; RMSprop is the example in its own docstring.
# Behaviour: the wrapper puts its z into the base's state of a parameter before the base's first step. torch's optimizers make their
#   moments only while that state is empty, so they make none, and the first step raises KeyError. Bases with no state that is
#   needed (SGD) and bases that make it in the constructor (Adagrad) train. Both wrapper classes behave alike. One step of the base
#   before the wrapping gets around it (with lr 0 and zero gradients, for example).
# Output:
#   RMSprop   plain: KeyError 'square_avg'    base stepped before: trains
#   Adam      plain: KeyError 'exp_avg'       base stepped before: trains
#   AdamW     plain: KeyError 'exp_avg'       base stepped before: trains
#   NAdam     plain: KeyError 'exp_avg'       base stepped before: trains
#   Adagrad   plain: trains                   base stepped before: trains
#   SGD       plain: trains                   base stepped before: trains
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy schedulefree==1.4.1

"$dir/venv/bin/python" - <<'PY'
import sys

import torch
from schedulefree import ScheduleFreeWrapper, ScheduleFreeWrapperReference


def outcome(wrapper, kind, stepped):
    weights = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    base = kind([weights], lr=0.0 if stepped else 0.01)
    if stepped:
        weights.grad = torch.zeros_like(weights)
        base.step()
        base.param_groups[0]["lr"] = 0.01
    optimizer = wrapper(base, momentum=0.9)
    optimizer.train()
    try:
        for _ in range(3):
            weights.grad = weights.detach().clone()
            optimizer.step()
    except KeyError as error:
        return f"KeyError {error}"
    return "trains" if (weights.detach() < torch.tensor([1.0, 2.0])).all() else "stands still"


changed = False
for kind, fails in (
    (torch.optim.RMSprop, True),
    (torch.optim.Adam, True),
    (torch.optim.AdamW, True),
    (torch.optim.NAdam, True),
    (torch.optim.Adagrad, False),
    (torch.optim.SGD, False),
):
    plain, after = (outcome(ScheduleFreeWrapper, kind, stepped) for stepped in (False, True))
    print(f"{kind.__name__:9} plain: {plain:24} base stepped before: {after}")
    changed |= plain.startswith("KeyError") != fails or after != "trains"
    changed |= outcome(ScheduleFreeWrapperReference, kind, False) != plain
if changed:
    sys.exit("the behaviour has changed")
PY
