#!/usr/bin/env bash
# tinygrad's LAMB and LARS, fused, are another rule: one trust ratio for the whole model, so the largest layer sets everyone's steps.
#
# Versions: tinygrad 0.14.0 (its PYTHON device).
# Guess: fused=True, or FUSE_OPTIM=1 for a whole program, makes fewer kernels of the same arithmetic, as it does for AdamW and SGD, and
#   as fused=True does in torch.
# Behaviour: it concatenates all params and runs the step on the one tensor that comes of it. Element by element that is the same; the norms
#   of LAMB and LARS, by which each layer has a rate of its own, become norms over all layers. A layer with weights of 1 beside one with
#   weights of 100 takes LAMB steps 66 times too long and passes through 0 in the first. Muon, whose matrices cannot be concatenated either,
#   refuses to be fused.
# Output (two layers of weights 1 and 100, gradients of ones, lr 0.1, after one step and after three):
#   LAMB   apart  1 -> 0.900 -> 0.729     100 ->  90.000 ->  72.900     fused  1 -> -6.071 -> -18.827   100 ->  92.929 ->  80.173
#   LARS   apart  1 -> 1.000 -> 0.999     100 ->  99.990 ->  99.944     fused  1 ->  0.993 ->   0.961   100 ->  99.993 ->  99.960
#   AdamW  apart  1 -> 0.899 -> 0.697     100 ->  99.800 ->  99.401     fused  1 ->  0.899 ->   0.697   100 ->  99.800 ->  99.401
#   Muon   fused  AssertionError
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile tinygrad==0.14.0 numpy

DEV=PYTHON XDG_CACHE_HOME="$dir" "$dir/venv/bin/python" - <<'PY'
import sys

import numpy
from tinygrad import Context, Tensor
from tinygrad.nn import optim


def paths(kind, fused):
    """Each layer's weight after one step and after three."""
    layers = [Tensor([start] * 4).is_param_(True).realize() for start in (1.0, 100.0)]
    optimizer = kind(layers, lr=0.1, fused=fused)
    seen = []
    with Context(TRAINING=1):
        for _ in range(3):
            for layer in layers:
                layer.grad = Tensor([1.0] * 4)
            optimizer.step()
            seen.append([layer.numpy()[0] for layer in layers])
    return numpy.array([seen[0], seen[2]]).T


same = True
for kind, differs in ((optim.LAMB, True), (optim.LARS, True), (optim.AdamW, False)):
    apart, fused = paths(kind, False), paths(kind, True)
    line = f"{kind.__name__:<6}"
    for name, (small, large) in (("apart", apart), ("fused", fused)):
        line += f" {name}  1 -> {small[0]:6.3f} -> {small[1]:7.3f}   100 -> {large[0]:7.3f} -> {large[1]:7.3f}    "
    print(line)
    same &= (not numpy.allclose(apart, fused, rtol=1e-4)) == differs
    if kind is optim.LAMB:
        same &= abs((1 - fused[0][0]) / (1 - apart[0][0])) > 50
try:
    optim.Muon([Tensor.ones(2, 2).is_param_(True)], fused=True)
    same = False
except AssertionError:
    print("Muon   fused  AssertionError")
if not same:
    sys.exit("the behaviour has changed")
PY
