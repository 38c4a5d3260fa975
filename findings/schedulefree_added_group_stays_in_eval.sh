#!/usr/bin/env bash
# A group that schedulefree gets while training is evaluated at the wrong weights, and the first eval() and train() move it.
#
# Versions: torch 2.13.0, schedulefree 1.4.1.
# Guess: train mode is the optimizer's. A group added after train() (a layer thawed later) takes part in it: eval() shows its
#   averaged weights, and train() after eval() puts back what was there.
# Behaviour: each group has a train_mode of its own, and a new one starts with the default, False. step() asks only the first group, so
#   nothing complains. eval() leaves the new group's weights where the gradients are taken, not at the average; the train() after
#   it then moves them as if they had been averaged. From then on the group is right, from the wrong place. Calling train() once
#   more right after add_param_group, before the next step, avoids it.
# Output (3 steps, the group added, 20 steps; the numbers are one weight of each):
#   AdamWScheduleFree
#     first group   training 0.0662   eval() 0.1151   train() 0.0662
#     added group   training 0.1359   eval() 0.1359   train() 0.0910
#   AdamWScheduleFree, train() after adding
#     first group   training 0.0662   eval() 0.1151   train() 0.0662
#     added group   training 0.1359   eval() 0.1859   train() 0.1359
#   SGDScheduleFree
#     first group   training 0.1813   eval() 0.2236   train() 0.1813
#     added group   training 0.2422   eval() 0.2422   train() 0.2047
#   SGDScheduleFree, train() after adding
#     first group   training 0.1813   eval() 0.2236   train() 0.1813
#     added group   training 0.2422   eval() 0.2838   train() 0.2422
#   RAdamScheduleFree
#     first group   training 0.9253   eval() 0.9298   train() 0.9253
#     added group   training 0.9417   eval() 0.9417   train() 0.9387
#   RAdamScheduleFree, train() after adding
#     first group   training 0.9253   eval() 0.9298   train() 0.9253
#     added group   training 0.9417   eval() 0.9452   train() 0.9417
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy schedulefree==1.4.1

"$dir/venv/bin/python" - <<'PY'
import sys

import schedulefree
import torch


def values(kind, train_again):
    old, new = (torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    optimizer = kind([old], lr=0.1)
    optimizer.train()

    def steps(count):
        for _ in range(count):
            for weight in (old, new):
                weight.grad = weight.detach().clone()
            optimizer.step()

    steps(3)
    optimizer.add_param_group({"params": [new]})
    if train_again:
        optimizer.train()
    steps(20)
    seen = [(old.item(), new.item())]
    for switch in (optimizer.eval, optimizer.train):
        switch()
        seen.append((old.item(), new.item()))
    return list(zip(*seen))  # of each weight: training, eval(), train()


changed = False
for kind in (schedulefree.AdamWScheduleFree, schedulefree.SGDScheduleFree, schedulefree.RAdamScheduleFree):
    for train_again in (False, True):
        old, new = values(kind, train_again)
        print(f"{kind.__name__}{', train() after adding' if train_again else ''}")
        for name, (training, averaged, back) in (("first", old), ("added", new)):
            print(f"  {name} group   training {training:.4f}   eval() {averaged:.4f}   train() {back:.4f}")
            wrong = name == "added" and not train_again
            changed |= (abs(averaged - training) < 1e-6) != wrong or (abs(back - training) > 1e-4) != wrong
if changed:
    sys.exit("the behaviour has changed")
PY
