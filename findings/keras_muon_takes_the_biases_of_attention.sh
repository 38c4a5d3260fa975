#!/usr/bin/env bash
# In Keras, Muon steps MultiHeadAttention the wrong way round: its weights by Adam, and the biases of query, key and value by Muon.
#
# Versions: keras 3.15.1, jax 0.10.2 (CPU).
# Guess: of a transformer's block Muon orthogonalizes the updates of the four projections and of the two dense layers, and leaves biases and
#   norms to Adam, as it does for the same block written for torch. The attention's matrices are what Muon was made for.
# Behaviour: Muon takes what has two dimensions, without regard to what it is (that others go to Adam its documentation says). Keras keeps
#   a projection as (inputs, heads, size of a head), which has three, also with one head, and its bias as (heads, size of a head),
#   which has two. So the bias counts as a matrix that maps heads to features, and all its directions get steps of about the same
#   length, while none of the four projections is orthogonalized. GroupQueryAttention is the same. exclude_layers can take the biases
#   out; nothing can put the weights in.
# Output (which rule made the first step of random gradients: Adam's is lr in each element, Muon's is along the nearest orthogonal matrix):
#   query/kernel              (64, 8, 8)  Adam
#   query/bias                (8, 8)      Muon
#   key/kernel                (64, 8, 8)  Adam
#   key/bias                  (8, 8)      Muon
#   value/kernel              (64, 8, 8)  Adam
#   value/bias                (8, 8)      Muon
#   attention_output/kernel   (8, 8, 64)  Adam
#   attention_output/bias     (64,)       Adam
#   dense/kernel              (64, 64)    Muon
#   dense/bias                (64,)       Adam
#   one head, by Muon:                 query/bias, key/bias, value/bias
#   GroupQueryAttention, by Muon:      query/bias, key/bias, value/bias
#   exclude_layers=['bias'], by Muon:  none
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile keras==3.15.1 jax==0.10.2 jaxlib==0.10.2

KERAS_HOME="$dir" KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import keras
import numpy

keras.utils.set_random_seed(0)
inputs = numpy.random.randn(2, 5, 64).astype("float32")


def rule(variable, value, gradient):
    """Which rule made the first step from value, told by the step itself."""
    step = value - numpy.array(variable)
    # Adam's first step is lr in every element but the few whose gradient is near epsilon.
    if (abs(abs(step) - 1) < 0.01).mean() > 0.99:
        return "Adam"
    # Muon's is the gradient with all its singular values near one number. The cosine of the two is 0.85 for a random gradient as it is.
    u, _, v = numpy.linalg.svd(gradient, full_matrices=False)
    cosine = (step * (u @ v)).sum() / numpy.linalg.norm(step) / numpy.linalg.norm(u @ v)
    return "Muon" if cosine > 0.95 else f"neither ({cosine:.3f})"


def rules(*layers, **options):
    """Shape and rule of each variable of the layers, the first of which is an attention."""
    attention, *dense = layers
    attention(inputs, inputs)
    for layer in dense:
        layer(inputs)
    variables = [variable for layer in layers for variable in layer.trainable_variables]
    before = [numpy.array(variable) for variable in variables]
    gradients = [numpy.random.randn(*value.shape).astype("float32") for value in before]
    optimizer = keras.optimizers.Muon(learning_rate=1.0, weight_decay=None, adam_weight_decay=None, **options)
    optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in gradients], variables)
    names = ["/".join(variable.path.split("/")[-2:]) for variable in variables]
    return {name: (value.shape, rule(*rest)) for name, value, *rest in zip(names, before, variables, before, gradients)}


BIASES = ["query/bias", "key/bias", "value/bias"]
seen = rules(keras.layers.MultiHeadAttention(num_heads=8, key_dim=8), keras.layers.Dense(64))
for name, (shape, taken) in seen.items():
    print(f"{name:<25} {shape!s:<11} {taken}")
same = len(seen) == 10 and {taken for _, taken in seen.values()} == {"Adam", "Muon"}
for title, layers, options, expected in (
    ("", None, {}, [*BIASES, "dense/kernel"]),
    ("one head", [keras.layers.MultiHeadAttention(num_heads=1, key_dim=64)], {}, BIASES),
    ("GroupQueryAttention", [keras.layers.GroupQueryAttention(8, 8, 4)], {}, BIASES),
    ("exclude_layers=['bias']", [keras.layers.MultiHeadAttention(num_heads=8, key_dim=8)], {"exclude_layers": ["bias"]}, []),
):
    found = rules(*layers, **options) if layers else seen
    by_muon = [name for name, (_, taken) in found.items() if taken == "Muon"]
    if title:
        print(f"{title + ', by Muon:':<34} {', '.join(by_muon) or 'none'}")
    same &= by_muon == expected and not any(taken.startswith("neither") for _, taken in found.values())
if not same:
    sys.exit("the behaviour has changed")
PY
