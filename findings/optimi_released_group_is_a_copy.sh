#!/usr/bin/env bash
# After load_state_dict, optimi's gradient release no longer listens to param_groups: the checkpoint's lr stays for good.
#
# Versions: torch 2.13.0, torch-optimi 0.3.3.
# Guess: param_groups is where an optimizer's lr is, before a checkpoint and after it. A run with gradient_release=True that saves model,
#   optimizer and scheduler, and loads them, goes on as if it had not stopped: the scheduler lowers lr, and the steps get smaller.
# Behaviour: with gradient_release=True each parameter's state has an entry "group", which is the group itself, and the released step
#   takes lr and all other options from there. state_dict() writes it, and load_state_dict() puts a deep copy in its place. From
#   then on every parameter has a group of its own that nobody else sees: the scheduler and whoever reads param_groups see lr fall,
#   and the steps keep the lr of the checkpoint. No error, no warning. Without gradient release the same run goes on rightly.
# Output (lr is halved each step; the largest change of a weight by the ninth step, over the lr that param_groups has for it):
#   gradient_release=True    straight on: lr 0.000039 change/lr   1.0   loaded: lr 0.000039 change/lr  16.0
#   gradient_release=False   straight on: lr 0.000039 change/lr   1.0   loaded: lr 0.000039 change/lr   1.0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy packaging torch-optimi==0.3.3

"$dir/venv/bin/python" - <<'PY'
import copy
import sys

import optimi
import torch

torch.set_num_threads(1)


def build(release):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = optimi.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, gradient_release=release)
    if release:
        optimi.prepare_for_gradient_release(model, optimizer)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def train(run, steps):
    model, optimizer, scheduler = run
    for _ in range(steps):
        lr, before = optimizer.param_groups[0]["lr"], model.weight.detach().clone()
        model(torch.ones(2, 4)).sum().backward()  # a constant gradient: Adam's steps are of size lr
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return lr, (model.weight.detach() - before).abs().max().item() / lr


changed = False
for release in (True, False):
    first = build(release)
    train(first, 4)
    saved = copy.deepcopy([part.state_dict() for part in first])
    straight = train(first, 5)
    second = build(release)
    for part, state in zip(second, saved):
        part.load_state_dict(state)
    loaded = train(second, 5)
    shown = [f"lr {lr:.6f} change/lr {ratio:5.1f}" for lr, ratio in (straight, loaded)]
    print(f"gradient_release={release!s:5}   straight on: {shown[0]}   loaded: {shown[1]}")
    changed |= straight[0] != loaded[0] or abs(straight[1] - 1) > 0.1 or (loaded[1] > 8) != release
if changed:
    sys.exit("the behaviour has changed")
PY
