#!/usr/bin/env bash
# optax.clip_by_global_norm lets bfloat16 gradients of a model with many tensors through at several times max_norm.
#
# Versions: jax 0.10.2, optax 0.2.8, keras 3.15.1 and torch 2.13.0 (for comparison).
# Guess: the global norm of bfloat16 gradients is right to two or three digits, whatever the number of tensors. XLA sums each
#   tensor's squares in float32 and rounds once.
# Behaviour: the tensors' sums are bfloat16 numbers, and they are added one by one in bfloat16. A term that is less than a 512th of
#   the sum adds nothing. With tensors of equal norm the squared norm stops at 256: from 256 tensors on the norm is 16 times that
#   of one. So 1,000 tensors are clipped to twice max_norm, and 3,000 to 3.4 times. One large gradient that comes
#   first hides all that are small beside it. float16 does the same later, at 2,048 tensors. keras's global_clipnorm, which adds up
#   the tensors' sums in one reduction, and torch's clip_grad_norm_, a norm of norms, are right in bfloat16 too.
# Output (norm after clipping to 1, of so many tensors of norm 1):
#   optax  float32    100 tensors: 1.00   300: 1.00   1000: 1.00   3000: 1.00
#   optax  bfloat16   100 tensors: 1.00   300: 1.08   1000: 1.98   3000: 3.42
#   optax  float16    100 tensors: 1.00   300: 1.00   1000: 1.00   3000: 1.21
#   keras  bfloat16   100 tensors: 1.00   300: 1.00   1000: 1.00   3000: 1.00
#   torch  bfloat16   100 tensors: 1.00   300: 1.00   1000: 1.00   3000: 1.00
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 keras==3.15.1

JAX_PLATFORMS=cpu KERAS_BACKEND=jax "$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import jax.numpy as jnp
import keras
import numpy as np
import optax
import torch


def norm(tensors):
    return float(np.sqrt(sum(np.square(np.asarray(tensor, np.float64)).sum() for tensor in tensors)))


def with_optax(count, dtype):
    clip = optax.clip_by_global_norm(1.0)
    grads = [jnp.full(16, 0.25, dtype) for _ in range(count)]
    return norm(clip.update(grads, clip.init(grads))[0])


def with_keras(count, dtype):
    weights = [keras.Variable(np.zeros(16), dtype=dtype) for _ in range(count)]
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
    optimizer.build(weights)
    optimizer.apply([jnp.full(16, 0.25, dtype) for _ in range(count)], weights)
    return norm(weight.value for weight in weights)  # from 0, with lr 1: the weights are what was left of the gradients


def with_torch(count, dtype):
    weights = [torch.nn.Parameter(torch.zeros(16, dtype=getattr(torch, dtype))) for _ in range(count)]
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.25)
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    return norm(weight.grad.double() for weight in weights)


COUNTS = (100, 300, 1000, 3000)
changed = False
for name, dtype, clip, wrong in (  # wrong: the counts at which more than 1.05 is left
    ("optax", "float32", with_optax, ()),
    ("optax", "bfloat16", with_optax, (300, 1000, 3000)),
    ("optax", "float16", with_optax, (3000,)),
    ("keras", "bfloat16", with_keras, ()),
    ("torch", "bfloat16", with_torch, ()),
):
    left = {count: clip(count, dtype) for count in COUNTS}
    shown = "   ".join(f"{count}{' tensors' if count == COUNTS[0] else ''}: {value:.2f}" for count, value in left.items())
    print(f"{name}  {dtype:9}  {shown}", flush=True)
    changed |= tuple(count for count, value in left.items() if value > 1.05) != wrong
if changed:
    sys.exit("the behaviour has changed")
PY
