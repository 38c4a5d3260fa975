#!/usr/bin/env bash
# float64 to bfloat16, float16 or float8 is not the nearest value in torch, ml_dtypes and jax: they round to float32 on the way.
#
# Versions: torch 2.13.0, numpy 2.4.6, ml_dtypes 0.6.0, jax 0.10.2 (CPU).
# Guess: a conversion gives the nearest value of the target, halves to even, as IEEE 754 asks of conversions and as float64 to
#   float32 does everywhere. So a result computed in float64 and cast is the one that a kernel in 16 bits has to meet, bit for bit.
# Behaviour: only numpy's float16 is always the nearest. torch rounds to float32 first, for all three targets and for numbers given
#   as Python floats too (torch.tensor, fill_), and int64 as well; what lies a little beside a half of the target becomes that half,
#   and then the even neighbour. ml_dtypes does so for bfloat16 and float8, jax for bfloat16 and float16 but not for float8. The three
#   agree with each other where they are wrong, so comparing them shows nothing. The chance is 2^-(number of bits that float32 has
#   more, and one): 2^-17 of bfloat16, 2^-14 of float16. A tensor of a million elements has about 8 and 65 of these.
# Output (numbers of 2^22 that are not the nearest; then 1 + half of a last place + 2^-40, whose nearest value is above 1):
#   bfloat16       torch 40     ml_dtypes 40      jax 40      above a half: torch 1.0         ml_dtypes 1.0         jax 1.0
#   float16        torch 247    numpy 0           jax 247     above a half: torch 1.0         numpy 1.0009765625    jax 1.0
#   float8_e4m3fn  torch 0      ml_dtypes 0       jax 0       above a half: torch 1.0         ml_dtypes 1.0         jax 1.125
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0 jax==0.10.2 jaxlib==0.10.2

JAX_PLATFORMS=cpu JAX_ENABLE_X64=1 "$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

# Between 1/16 and 16, where all three targets have normal numbers alone.
numbers = np.exp2(np.random.default_rng(0).uniform(-4, 4, 1 << 22))


def nearest(values, bits):
    unit = np.ldexp(1.0, np.frexp(values)[1] - bits)
    return np.rint(values / unit) * unit  # a power of two divides without rounding


def in_torch(values, name):
    return torch.from_numpy(values).to(getattr(torch, name)).double().numpy()


def in_numpy(values, name):
    return values.astype(np.float16 if name == "float16" else getattr(ml_dtypes, name)).astype(np.float64)


def in_jax(values, name):
    return np.asarray(jnp.asarray(values).astype(getattr(jnp, name)).astype(jnp.float64))


changed = False
for name, bits, (second, second_right), jax_right in (
    ("bfloat16", 8, ("ml_dtypes", False), False),
    ("float16", 11, ("numpy", True), False),
    ("float8_e4m3fn", 4, ("ml_dtypes", False), True),
):
    above = np.array([1 + 2.0**-bits + 2.0**-40])
    assert nearest(above, bits)[0] > 1
    counts, values = f"{name:14}", "above a half:"
    for title, convert, right in (("torch", in_torch, False), (second, in_numpy, second_right), ("jax", in_jax, jax_right)):
        wrong = int((convert(numbers, name) != nearest(numbers, bits)).sum())
        value = convert(above, name)[0]
        counts += f" {title} {wrong}".ljust(18 if title == second else 13)
        values += f" {title} {value}".ljust(22 if title == second else 18)
        changed |= (value == nearest(above, bits)[0]) != right or (right and wrong > 0)
        changed |= bits > 4 and not right and wrong == 0  # of float8 one in two million, which may be none here
    # A Python float and a float64 tensor go the same way in torch.
    changed |= torch.tensor(above[0], dtype=getattr(torch, name)).double().item() != 1.0
    print((counts + values).rstrip())
integer = (1 << 40) + (1 << 32) + 1
changed |= torch.tensor([integer]).to(torch.bfloat16).double().item() != 1 << 40
if changed:
    sys.exit("the behaviour has changed")
PY
