#!/usr/bin/env bash
# FTRL's first step puts weights at 0: all whose gradient is 0, and in Keras nearly all whose gradient is small, whatever lr is.
#
# Versions: keras 3.15.1, jax 0.10.2 (CPU), torch 2.13.0, pytorch_optimizer 4.1.0. 2026-11-30.
# Guess: as with every other optimizer, training starts from the weights that the model has, a weight whose gradient is 0 stays, and with
#   lr 1e-9 nothing moves that one could see. FTRL is made for sparse features, so what a batch does not hold is left alone.
# Behaviour: a weight is no sum of its start and of steps; each step computes it anew out of sums that start at 0, and of the old weight
#   only a part comes in: (sqrt(n + g^2) - sqrt(n)) / sqrt(n + g^2), with n what is accumulated. Keras starts n at 0.1, so of a weight
#   with a gradient of 0.01 0.05 % are left; lr cancels out. pytorch_optimizer starts it at 0, which keeps a weight with any gradient (with
#   beta=1, a usual value, it does not), but one without becomes 0. So whoever fine-tunes, or resumes a model
#   without its optimizer's state, loses what was trained in one step; so does every row of an embedding that is not in the
#   first batch, and embeddings that are multiplied with each other do not start well from 0. Nothing warns of it.
#   With initial_accumulator_value=1e-12 Keras keeps weights with a gradient, and with 0 it makes NaN of those without.
# Output (weights of 1 after one step with lr 1e-9):
#   gradient                                   0         0.001     0.01      0.1       1
#   keras.Ftrl                                 0.000000  0.000005  0.000500  0.046537  0.698489
#   keras.Ftrl(initial_accumulator_value=1e-12) 0.000000  0.999000  0.999900  0.999990  0.999999
#   pytorch_optimizer.FTRL                     0.000000  1.000000  1.000000  1.000000  1.000000
#   pytorch_optimizer.FTRL(beta=1)             0.000000  0.000999  0.009901  0.090909  0.500000
#   keras.Adagrad                              1.000000  1.000000  1.000000  1.000000  1.000000
#   keras.Ftrl, a table of 1,000 trained rows after a batch that has ten of them: rows that are all 0: 990
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0
"$dir/venv/bin/pip" install --quiet --no-deps pytorch_optimizer==4.1.0

KERAS_HOME="$dir" KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import keras
import numpy
import pytorch_optimizer
import torch

LR = 1e-9
GRADIENTS = numpy.array([0, 1e-3, 1e-2, 0.1, 1], "float32")


def of_keras(kind, **options):
    weights = keras.Variable(numpy.ones(5, "float32"))
    kind(LR, **options).apply([keras.ops.convert_to_tensor(GRADIENTS)], [weights])
    return numpy.array(weights)


def of_pytorch_optimizer(**options):
    weights = torch.nn.Parameter(torch.ones(5))
    weights.grad = torch.from_numpy(GRADIENTS.copy())
    pytorch_optimizer.FTRL([weights], lr=LR, **options).step()
    return weights.detach().numpy()


def rows_of_zeros():
    table = keras.layers.Embedding(1000, 8, embeddings_initializer="ones")
    model = keras.Sequential([keras.Input((10,), dtype="int32"), table, keras.layers.Flatten()])
    model.compile(keras.optimizers.Ftrl(LR), loss="mse")
    model.fit(numpy.arange(10)[None], numpy.zeros((1, 80), "float32"), verbose=0)
    return int((numpy.array(table.embeddings) == 0).all(1).sum())


same = True
print(f"{'gradient':<43}", *(f"{gradient:<9g}" for gradient in GRADIENTS))
for name, weights, least, most in (
    ("keras.Ftrl", of_keras(keras.optimizers.Ftrl), [0, 0, 0, 0, 0.6], [0, 1e-4, 1e-3, 0.1, 0.8]),
    (
        "keras.Ftrl(initial_accumulator_value=1e-12)",
        of_keras(keras.optimizers.Ftrl, initial_accumulator_value=1e-12),
        [0] + [0.99] * 4,
        [0] + [1.0] * 4,
    ),
    ("pytorch_optimizer.FTRL", of_pytorch_optimizer(), [0] + [0.999] * 4, [0] + [1.001] * 4),
    ("pytorch_optimizer.FTRL(beta=1)", of_pytorch_optimizer(beta=1.0), [0, 0, 0, 0.08, 0.4], [0, 0.01, 0.02, 0.1, 0.6]),
    ("keras.Adagrad", of_keras(keras.optimizers.Adagrad), [0.999] * 5, [1.0] * 5),
):
    print(f"{name:<43}", *(f"{weight:<9.6f}" for weight in weights))
    same &= bool((weights >= least).all() and (weights <= most).all())
rows = rows_of_zeros()
print(f"keras.Ftrl, a table of 1,000 trained rows after a batch that has ten of them: rows that are all 0: {rows}")
if not same or rows != 990:
    sys.exit("the behaviour has changed")
PY
