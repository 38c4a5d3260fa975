#!/usr/bin/env bash
# LAMB of bitsandbytes steps by another trust ratio on a CPU than its own reference kernel for every other device.
#
# Versions: torch 2.13.0, bitsandbytes 0.50.2.
# Guess: a device changes the speed of a step and its last places. The backend "default", which serves devices without kernels of
#   their own, and the backend "cpu" take the same arguments under the same operator and give the same weights.
# Behaviour: "default" holds the norm of the update after its bias correction to that of the weights; "cpu" takes the norm of
#   m / (sqrt(v) + eps) before the correction, which on the first steps is sqrt(1 - beta2^t) / (1 - beta1^t) away, 3.2 times too
#   large with the default betas. So as long as the ratio is below 1 the CPU's first step is 0.32 times as long, and later steps
#   differ as well. Adam, which has no ratio, is the same on both.
# Output (length of each of four steps, weights of norm 1):
#   lamb  default [0.01, 0.01, 0.01, 0.01]           cpu [0.00316, 0.00235, 0.00202, 0.00184]
#   adam  default [0.32, 0.22536, 0.18739, 0.1635]   cpu [0.32, 0.22536, 0.18739, 0.1635]
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy packaging
"$dir/venv/bin/pip" install --quiet --no-deps bitsandbytes==0.50.2

# The default backend is written in torch and compiled; what it computes does not depend on that.
TORCHDYNAMO_DISABLE=1 "$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from bitsandbytes.backends.cpu import ops as cpu
from bitsandbytes.backends.default import ops as default


def lengths(update, name):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(1024, generator=generator)
    weights /= weights.norm()
    m, v, norm = torch.zeros(1024), torch.zeros(1024), torch.zeros(1)
    found = []
    for step in range(1, 5):
        before = weights.clone()
        grad = torch.randn(1024, generator=generator)
        largest = 1.0 if name == "lamb" else 0.0
        update(
            name, grad, weights, m, v, norm, largest, before.norm().item(),
            0.9, 0.999, 0.0, 0.0, 1e-8, 0.0, step, 0.01, 1.0, False,
        )
        found.append(round((weights - before).norm().item(), 5))
    return found


def reference(name, g, p, m, v, norm, largest, size, *rest):
    number = default.name2optimizer_id[name]
    beta1, beta2, beta3, alpha, eps, decay, step, lr, scale, _ = rest
    if largest > 0:
        norm.zero_()
        default._optimizer_precondition_32bit(g, p, m, v, norm, beta1, beta2, eps, decay, step, lr, scale, number)
    default._optimizer_update_32bit(
        g, p, m, v, norm, largest, size, beta1, beta2, beta3, alpha, eps, decay, step, lr, scale, number
    )


changed = False
for name in ("lamb", "adam"):
    wanted, found = lengths(reference, name), lengths(cpu._optimizer_update_32bit_cpu, name)
    print(f"{name}  default {wanted!s:34} cpu {found}")
    same = all(abs(a - b) < 1e-3 * a for a, b in zip(wanted, found))
    changed |= same != (name == "adam")
    changed |= name == "lamb" and abs(found[0] / wanted[0] - 0.316) > 1e-2
if changed:
    sys.exit("the behaviour has changed")
PY
