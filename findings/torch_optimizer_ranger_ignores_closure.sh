#!/usr/bin/env bash
# Ranger and RangerVA of torch_optimizer never call the closure that step() is given.
#
# Versions: torch 2.13.0, torch_optimizer 0.3.0.
# Guess: step(closure) calls the closure once and returns its loss, as step's own docstring says and every other optimizer of the
#   package does. Trainers rely on it: those that hand forward and backward over as the closure work with any optimizer.
# Behaviour: Ranger and RangerVA take the closure and drop it. No gradient ever comes into being, parameters without one are
#   skipped, and step returns None. Training runs to its end without an error or a warning, and no weight moves. RangerQH calls it.
# Output (20 steps from the weights 1, 2):
#   Ranger      closure called 0 times   returned None      weights [1.0, 2.0]
#   RangerVA    closure called 0 times   returned None      weights [1.0, 2.0]
#   RangerQH    closure called 20 times  returned a loss    weights [0.892, 1.891]
#   Yogi        closure called 20 times  returned a loss    weights [0.803, 1.802]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy torch_optimizer==0.3.0

"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import torch_optimizer

changed = False
for kind, drops in (
    (torch_optimizer.Ranger, True),
    (torch_optimizer.RangerVA, True),
    (torch_optimizer.RangerQH, False),
    (torch_optimizer.Yogi, False),
):
    weights = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = kind([weights], lr=0.01)
    calls = []

    def closure(weights=weights, optimizer=optimizer, calls=calls):
        calls.append(None)
        optimizer.zero_grad()
        loss = weights.square().sum()
        loss.backward()
        return loss

    for _ in range(20):
        loss = optimizer.step(closure)
    returned = "None" if loss is None else "a loss"
    values = [round(value, 3) for value in weights.tolist()]
    print(f"{kind.__name__:10}  closure called {len(calls)} times".ljust(37) + f"returned {returned:9} weights {values}")
    changed |= (len(calls), loss is None, values == [1.0, 2.0]) != ((0, True, True) if drops else (20, False, False))
if changed:
    sys.exit("the behaviour has changed")
PY
