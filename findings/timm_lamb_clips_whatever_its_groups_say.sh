#!/usr/bin/env bash
# timm's Lamb has max_grad_norm in its groups and its files, and clips by what its constructor was given, 1.0 if nothing.
#
# Versions: torch 2.13.0, timm 1.0.31.
# Guess: max_grad_norm is a setting of a group like the others in param_groups, so load_state_dict brings a run's back: training
#   without clipping, saved and loaded into Lamb(params), goes on as if it had not stopped. And a group that is edited, or comes with a
#   number of its own, is clipped to that.
# Behaviour: step() reads self.defaults["max_grad_norm"], which neither load_state_dict nor a group changes. The resumed run's groups
#   say None, and its gradients are divided by their norm: it ends elsewhere, without a word. A Lamb for which None was given stays
#   unclipped whatever its groups are edited to. Only the constructor's argument counts, given anew for each resume.
# Output (largest difference to the run that goes on, as a part of how far that moved):
#   the groups say                              None
#   Lamb(params), file loaded                   1.36
#   Lamb(params, max_grad_norm=None), loaded    0.0
#   groups edited to 1.0, of one made with None 0.0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$dir/venv/bin/pip" install --quiet --no-deps timm==1.0.31

"$dir/venv/bin/python" - <<'PY'
import copy
import importlib.util
import pathlib
import sys
import types

import torch

# The optimizer alone: its package's first import wants torchvision for the models.
spec = importlib.util.find_spec("timm")
timm = types.ModuleType("timm")
timm.__path__ = list(spec.submodule_search_locations)
sys.modules["timm"] = timm
optim = types.ModuleType("timm.optim")
optim.__path__ = [str(pathlib.Path(timm.__path__[0], "optim"))]
sys.modules["timm.optim"] = optim
from timm.optim.lamb import Lamb

NORMS = (1.0, 100.0, 3.0, 60.0, 0.5, 80.0)


def train(optimizer, param, steps):
    for step in steps:
        direction = torch.randn(64, generator=torch.Generator().manual_seed(step))
        param.grad = NORMS[step] * direction / direction.norm()
        optimizer.step()


def start():
    return torch.nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(99)))


straight = start()
whole = Lamb([straight], lr=0.1, max_grad_norm=None)
train(whole, straight, range(3))
half, file = straight.detach().clone(), copy.deepcopy(whole.state_dict())
train(whole, straight, range(3, 6))


def resumed(edit=None, **given):
    param = torch.nn.Parameter(half.clone())
    optimizer = Lamb([param], lr=0.1, **given)
    optimizer.load_state_dict(copy.deepcopy(file))
    if edit is not None:
        optimizer.param_groups[0]["max_grad_norm"] = edit
    said = optimizer.param_groups[0]["max_grad_norm"]
    train(optimizer, param, range(3, 6))
    apart = (param - straight).abs().max() / (straight - half).abs().max()
    return said, round(apart.item(), 2)


said, default = resumed()
_, given = resumed(max_grad_norm=None)
_, edited = resumed(edit=1.0, max_grad_norm=None)
print("the groups say                             ", said)
print("Lamb(params), file loaded                  ", default)
print("Lamb(params, max_grad_norm=None), loaded   ", given)
print("groups edited to 1.0, of one made with None", edited)
if not (said is None and default > 0.1 and given == edited == 0.0):
    sys.exit("the behaviour has changed")
PY
