#!/usr/bin/env bash
# torch's Optimizer.load_state_dict turns each string in a state into the text of a generator: kron_torch's Kron cannot be resumed.
#
# Versions: torch 2.13.0, kron_torch 0.3.3.
# Guess: load_state_dict casts tensors and gives everything else back as it was saved. So a run with Kron goes on after its
#   checkpoint bit for bit, given the random numbers.
# Behaviour: what can be iterated over and is no tensor or dict is made anew as type(value)(generator of its cast elements). A
#   list or a tuple is right after that; str(generator) is "<generator object ...>", nested ones as well. There is no
#   error and no warning at loading. Kron keeps its einsum expressions in each parameter's state, so its first step after any
#   load raises, whatever the file. A namedtuple or a range raises in load_state_dict, and an OrderedDict comes back as a dict.
#   Bytes, numbers and None survive.
# Output:
#   a string             'ab->b'              comes back as a generator's text
#   a list               ['ab->b', 1]         comes back as ["a generator's text", 1]
#   bytes                b'ab->b'             comes back as b'ab->b'
#   a namedtuple         Point(x=1, y=2)      TypeError
#   a range              range(0, 3)          TypeError
#   kron_torch.Kron      straight on: 10 steps     loaded after 5: its next step raises ValueError: Subscripts can only contain one '->'.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy opt_einsum kron_torch==0.3.3

# Kron compiles its parts; what they compute, and what they are given, does not depend on that.
TORCHDYNAMO_DISABLE=1 "$dir/venv/bin/python" -W ignore - <<'PY'
import collections
import contextlib
import io
import sys

import kron_torch
import torch

Point = collections.namedtuple("Point", "x y")
changed = False


class Keeper(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


def loaded(value):
    old, new = (Keeper([torch.nn.Parameter(torch.zeros(2))]) for _ in range(2))
    old.state[old.param_groups[0]["params"][0]] = {"kept": value}
    try:
        new.load_state_dict(old.state_dict())
    except TypeError:
        return "TypeError"
    return new.state[new.param_groups[0]["params"][0]]["kept"]


def shown(value):
    if isinstance(value, str) and value.startswith("<generator object"):
        return "a generator's text"
    return value


for name, value, expected in (
    ("a string", "ab->b", "a generator's text"),
    ("a list", ["ab->b", 1], ["a generator's text", 1]),
    ("bytes", b"ab->b", b"ab->b"),
    ("a namedtuple", Point(1, 2), "TypeError"),
    ("a range", range(3), "TypeError"),
):
    found = loaded(value)
    found = [shown(element) for element in found] if isinstance(found, list) else shown(found)
    print(f"{name:20} {value!r:20} {'' if found == 'TypeError' else 'comes back as '}{found}")
    changed |= found != expected


def steps(optimizer, weights, count):
    for _ in range(count):
        weights.grad = weights.detach().clone()
        with contextlib.redirect_stdout(io.StringIO()):  # Kron tells how large it is
            optimizer.step()


def start():
    weights = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    return weights, kron_torch.Kron([weights], lr=0.01)


weights, optimizer = start()
steps(optimizer, weights, 5)
file, halfway = io.BytesIO(), weights.detach().clone()
torch.save(optimizer.state_dict(), file)
steps(optimizer, weights, 5)
file.seek(0)
again, resumed = start()
again.data.copy_(halfway)
resumed.load_state_dict(torch.load(file, weights_only=False))
try:
    steps(resumed, again, 5)
    outcome = "trains on"
except ValueError as error:
    outcome = f"its next step raises ValueError: {error}"
print(f"kron_torch.Kron      straight on: 10 steps     loaded after 5: {outcome}")
changed |= not outcome.startswith("its next step raises ValueError") or not weights.isfinite().all().item()
if changed:
    sys.exit("the behaviour has changed")
PY
