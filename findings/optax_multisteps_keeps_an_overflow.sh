#!/usr/bin/env bash
# One overflow in one micro-batch stays in optax.MultiSteps for good: apply_if_finite inside it then writes NaN into the weights.
#
# Versions: jax 0.10.2, optax 0.2.8.
# Guess: a gradient with an inf in one micro-batch costs one step. MultiSteps starts the next accumulation from zero, so apply_if_finite
#   around the inner optimizer drops the step with the inf, and training goes on after it.
# Behaviour: the accumulators are emptied by a product with 0, and 0 * inf is NaN. So the element stays NaN in all later sums. Each
#   later step is dropped as well, for all weights, until apply_if_finite has counted its errors in a row, gives up, and lets the
#   NaN into the weight. clip passes the NaN on. apply_if_finite around MultiSteps, or its own should_skip_update_fn, are right.
# Output (two weights from 1, Adam with lr 0.1, 4 micro-batches a step, an inf in step 2 for the first one; after steps 1, 2, 3, 4, 5, 6, 10):
#   no overflow                           first 0.9 0.8 0.7 0.6 0.5 0.4 0.0     second 0.9 0.8 0.7 0.6 0.5 0.4 0.0
#   MultiSteps(apply_if_finite(adam))     first 0.9 0.9 0.9 0.9 nan nan nan     second 0.9 0.9 0.9 0.9 0.8 0.7 0.3
#   MultiSteps(chain(clip, adam))         first 0.9 nan nan nan nan nan nan     second 0.9 0.8 0.7 0.6 0.5 0.4 0.0
#   apply_if_finite(MultiSteps(adam))     first 0.9 0.9 0.8 0.7 0.6 0.5 0.1     second 0.9 0.9 0.8 0.7 0.6 0.5 0.1
#   MultiSteps(adam, skip_not_finite)     first 0.9 0.9 0.8 0.7 0.6 0.5 0.1     second 0.9 0.9 0.8 0.7 0.6 0.5 0.1
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

STEPS, MICRO = (1, 2, 3, 4, 5, 6, 10), 4


def accumulated(inner, **options):
    return optax.MultiSteps(inner, MICRO, **options).gradient_transformation()


def train(transformation, overflow):
    weights = jnp.ones(2)
    state = transformation.init(weights)
    update = jax.jit(transformation.update)
    seen = []
    for micro in range(STEPS[-1] * MICRO):
        gradient = jnp.full(2, 0.5)
        if overflow and micro == MICRO + 1:
            gradient = gradient.at[0].set(jnp.inf)
        updates, state = update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        if (micro + 1) % MICRO == 0 and (micro + 1) // MICRO in STEPS:
            seen.append([abs(round(float(weight), 1)) for weight in weights])
    return list(zip(*seen))


adam = optax.adam(0.1)
changed = False
for name, transformation, overflow, stays in (
    ("no overflow", accumulated(adam), False, False),
    ("MultiSteps(apply_if_finite(adam))", accumulated(optax.apply_if_finite(adam, 3)), True, True),
    ("MultiSteps(chain(clip, adam))", accumulated(optax.chain(optax.clip(1.0), adam)), True, True),
    ("apply_if_finite(MultiSteps(adam))", optax.apply_if_finite(accumulated(adam), 3), True, False),
    ("MultiSteps(adam, skip_not_finite)", accumulated(adam, should_skip_update_fn=optax.skip_not_finite), True, False),
):
    first, second = train(transformation, overflow)
    print(f"{name:37} first {' '.join(map(str, first))}     second {' '.join(map(str, second))}")
    changed |= (first[-1] != first[-1]) != stays or second[-1] != second[-1]
if changed:
    sys.exit("the behaviour has changed")
PY
