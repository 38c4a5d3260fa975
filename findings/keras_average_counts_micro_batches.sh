#!/usr/bin/env bash
# With gradient_accumulation_steps, Keras moves its average of the weights at every micro-batch, and overwrites the weights in mid-step.
#
# Versions: keras 3.15.1, jax 0.10.2 (CPU). With KERAS_BACKEND=numpy, whose code torch's backend shares, it is the same. 2026-11-30.
# Guess: the average goes by updates, as ema_momentum's formula has one value of the weights for each: an accumulating run has the
#   average of a run with the larger batch. ema_overwrite_frequency counts iterations, which accumulation does divide by its steps.
# Behaviour: the average is moved after every micro-batch, most of which left the weights as they are. With 8 of them a momentum of 0.9
#   is one of 0.43 an update, and 0.99 is one of 0.92. The frequency does count updates, but "is it time" holds for
#   all micro-batches of that update: before the first of them has been added up, the weights are replaced by the average. So the
#   gradients of one update are taken at two sets of weights, and of that update itself (1 - momentum) is left. There is no warning.
#   Whoever turns a batch of 256 into 8 of 32, to fit a smaller machine, gets another model out of fit(), which ends with the average.
# Output (SGD with a slope that makes each update add 1, ema_momentum 0.9; the first four rows are the weight that fit() leaves):
#   100 updates, without accumulation               91.00
#   100 updates of 2 micro-batches                  95.26
#   100 updates of 8 micro-batches                  98.42
#   the same with ema_momentum 0.9 ** (1 / 8)       90.13
#   the weight at which each micro-batch's gradient is taken, ema_overwrite_frequency=5, updates 4 to 6:
#   without accumulation       3.00 | 4.00 | 1.90
#   4 micro-batches            3.00 3.00 3.00 3.00 | 4.00 2.31 2.31 2.31 | 2.41 2.41 2.41 2.41
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile keras==3.15.1 jax==0.10.2 jaxlib==0.10.2

cat > "$dir/average.py" <<'PY'
import sys

import keras
import numpy


def optimizer(micro_batches, momentum=0.9, **options):
    accumulation = {} if micro_batches == 1 else {"gradient_accumulation_steps": micro_batches}
    return keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=momentum, **accumulation, **options)


def fitted(micro_batches, momentum=0.9):
    """The weight after 100 updates by fit()."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(optimizer(micro_batches, momentum), loss=lambda _, output: -output)
    ones = numpy.ones((100 * micro_batches, 1), "float32")
    model.fit(ones, ones, batch_size=1, epochs=1, verbose=0)
    return model.layers[0].kernel.numpy().item()


def seen(micro_batches):
    """The weights at which the gradients of updates 4 to 6 are taken."""
    weight = keras.Variable(numpy.zeros(1, "float32"))
    of_five = optimizer(micro_batches, ema_overwrite_frequency=5)
    of_five.build([weight])
    weights = []
    for _ in range(6 * micro_batches):
        weights.append(weight.numpy().item())
        of_five.apply([keras.ops.convert_to_tensor(numpy.array([-1.0], "float32"))], [weight])
    return [weights[update * micro_batches : (update + 1) * micro_batches] for update in (3, 4, 5)]


same = True
if keras.backend.backend() == "jax":
    for title, expected, *arguments in (
        ("100 updates, without accumulation", 91.00, 1),
        ("100 updates of 2 micro-batches", 95.26, 2),
        ("100 updates of 8 micro-batches", 98.42, 8),
        ("the same with ema_momentum 0.9 ** (1 / 8)", 90.13, 8, 0.9 ** (1 / 8)),
    ):
        weight = fitted(*arguments)
        print(f"{title:<47} {weight:.2f}")
        same &= abs(weight - expected) < 0.1
for title, micro_batches, expected in (
    ("without accumulation", 1, [[3], [4], [1.90]]),
    ("4 micro-batches", 4, [[3] * 4, [4, 2.31, 2.31, 2.31], [2.41] * 4]),
):
    weights = seen(micro_batches)
    print(f"{title:<26}", " | ".join(" ".join(f"{weight:.2f}" for weight in update) for update in weights))
    same &= numpy.allclose(sum(weights, []), sum(expected, []), atol=0.01)
if not same:
    sys.exit("the behaviour has changed")
PY
export KERAS_HOME="$dir" JAX_PLATFORMS=cpu
KERAS_BACKEND=jax "$dir/venv/bin/python" -W ignore "$dir/average.py"
KERAS_BACKEND=numpy "$dir/venv/bin/python" -W ignore "$dir/average.py"
