#!/usr/bin/env bash
# optax.inject_hyperparams(optax.adam), which is only to make lr settable, turns bfloat16 weights into NaN on the first step.
#
# Versions: jax 0.10.2, optax 0.2.8.
# Guess: wrapping an optimizer in inject_hyperparams puts its numbers into the state and changes no step. Adam steps bfloat16 weights
#   by about lr with or without it, as b1, b2 and eps are the same numbers.
# Behaviour: every numeric option, not only the lr one wants to set, becomes an array in the dtype of the gradients. In bfloat16 the
#   nearest value to b2, 0.999, is 1: the second moment stays 0, its bias correction is 0, and 0 / 0 is NaN. Yogi stands still
#   and RAdam takes other steps, which become NaN in float16. With hyperparam_dtype=float32 all of them train.
# Output (a weight from 1 after 24 steps of lr 0.01 with a constant gradient; plain, injected, injected with hyperparam_dtype=float32):
#   float32   adam   plain 0.7600   injected 0.7600   with hyperparam_dtype 0.7600
#   bfloat16  adam   plain 0.7188   injected nan   with hyperparam_dtype 0.7188
#   bfloat16  adamw  plain 0.7188   injected nan   with hyperparam_dtype 0.7188
#   bfloat16  lamb   plain 0.8047   injected nan   with hyperparam_dtype 0.8047
#   bfloat16  nadam  plain 0.7148   injected nan   with hyperparam_dtype 0.7148
#   bfloat16  yogi   plain 0.7188   injected 1.0000   with hyperparam_dtype 0.7188
#   bfloat16  radam  plain 0.9805   injected 0.9062   with hyperparam_dtype 0.9805
#   bfloat16  lion   plain 0.7188   injected 0.7188   with hyperparam_dtype 0.7188
#   float16   adam   plain 0.7656   injected 0.7554   with hyperparam_dtype 0.7656
#   float16   radam  plain 0.9624   injected nan   with hyperparam_dtype 0.9624
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 optax==0.2.8

JAX_PLATFORMS=cpu "$dir/venv/bin/python" - <<'PY'
import sys

import jax
import jax.numpy as jnp
import optax


def last(transformation, dtype):
    weights = jnp.ones(3, dtype)
    state = transformation.init(weights)
    update = jax.jit(transformation.update)
    for _ in range(24):
        updates, state = update(jnp.full(3, 0.5, dtype), state, weights)
        weights = optax.apply_updates(weights, updates)
    return float(weights[0])


changed = False
for dtype, name, expected in (
    (jnp.float32, "adam", "same"),
    (jnp.bfloat16, "adam", "nan"),
    (jnp.bfloat16, "adamw", "nan"),
    (jnp.bfloat16, "lamb", "nan"),
    (jnp.bfloat16, "nadam", "nan"),
    (jnp.bfloat16, "yogi", "still"),
    (jnp.bfloat16, "radam", "other"),
    (jnp.bfloat16, "lion", "same"),
    (jnp.float16, "adam", "other"),
    (jnp.float16, "radam", "nan"),
):
    kind = getattr(optax, name)
    plain = last(kind(learning_rate=0.01), dtype)
    injected = last(optax.inject_hyperparams(kind)(learning_rate=0.01), dtype)
    wide = last(optax.inject_hyperparams(kind, hyperparam_dtype=jnp.float32)(learning_rate=0.01), dtype)
    if injected != injected:
        found = "nan"
    elif injected == 1.0:
        found = "still"
    else:
        found = "same" if abs(injected - plain) < 1e-3 else "other"
    print(f"{dtype.__name__:9} {name:6} plain {plain:.4f}   injected {injected:.4f}   with hyperparam_dtype {wide:.4f}")
    changed |= found != expected or wide != wide or wide == 1.0
if changed:
    sys.exit("the behaviour has changed")
PY
