"""The table of Keras, optax, MLX and Paddle in docs/moving-in.md, row by row, with the real packages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from frameworks import LR, apart, matrices, ours, theirs, version_of
from torch import Tensor

PAGE = (Path(__file__).parent.parent.parent / "docs/moving-in.md").read_text()
TABLE = PAGE.partition("## Keras, optax, MLX and Paddle\n")[2].partition("\n## ")[0]
HEADING = ["their call", "ours", "apart", "seen in", "what differs"]


class Same(NamedTuple):
    """At most as far apart as the row says."""

    theirs: str
    given: dict[str, Any]
    ours: str
    called: dict[str, Any]


class Other(NamedTuple):
    """At least as far apart as this."""

    theirs: str
    given: dict[str, Any]
    ours: str
    called: dict[str, Any]
    bound: float


M9: dict[str, Any] = {"momentum": 0.9}
WD: dict[str, Any] = {"weight_decay": 0.1}
BY_7: dict[str, Any] = {"eps": 1e-7}
APART: dict[str, Any] = {"decoupled_weight_decay": True}
ALWAYS: dict[str, Any] = {"weight_decay": 0.0, "always_adapt": True}
FACTORED: dict[str, Any] = {"eps": (1e-15, 1e-3)}
# Where it stands matters, and is seen with a large one.
LARGE = 1e-2

# By the first column.
ROWS: dict[str, list[Same | Other]] = {
    "`keras.SGD(momentum=0.9)`": [
        Same("keras.SGD", M9, "SGD", M9),
        Same("keras.SGD", {**M9, "nesterov": True}, "SGD", {**M9, "nesterov": True}),
    ],
    "any of Keras with `weight_decay=`": [
        Same("keras.SGD", {**M9, **WD}, "SGD", {**M9, **WD, **APART}),
        Same("keras.Adam", WD, "AdamW", {**WD, **BY_7}),
        Other("keras.Adam", WD, "Adam", {**WD, **BY_7}, 0.2),
    ],
    "`keras.Adam`, `keras.AdamW`": [
        Same("keras.Adam", {}, "Adam", BY_7),
        Same("keras.AdamW", {}, "AdamW", {**BY_7, "weight_decay": 0.004}),
        Other("keras.Adam", {"epsilon": LARGE}, "Adam", {"eps": LARGE}, 0.2),
    ],
    "`keras.RMSprop`": [
        Same("keras.RMSprop", {}, "RMSprop", {"alpha": 0.9, **BY_7, "eps_in_sqrt": True}),
        Other("keras.RMSprop", {"epsilon": LARGE}, "RMSprop", {"alpha": 0.9, "eps": LARGE}, 0.1),
    ],
    "`keras.Nadam`": [
        Same("keras.Nadam", {}, "NAdam", {"momentum_decay": 1.0, **BY_7}),
        Other("keras.Nadam", {}, "NAdam", BY_7, 0.05),
    ],
    "`keras.Adagrad`": [Same("keras.Adagrad", {}, "Adagrad", {"initial_accumulator_value": 0.1, **BY_7})],
    "`keras.Adadelta`": [Same("keras.Adadelta", {}, "Adadelta", {"rho": 0.95, **BY_7})],
    "`keras.Adamax`, `keras.Lion`": [
        Same("keras.Adamax", {}, "Adamax", BY_7),
        Same("keras.Lion", {}, "Lion", {}),
    ],
    "`keras.Lamb`": [
        Same("keras.Lamb", {}, "LAMB", {**BY_7, **ALWAYS}),
        Other("keras.Lamb", {}, "LAMB", {**BY_7, "weight_decay": 0.0}, 0.2),
    ],
    "`keras.Adafactor`, `mlx.Adafactor`": [
        Same("keras.Adafactor", {}, "Adafactor", FACTORED),
        Same("mlx.Adafactor", {}, "Adafactor", FACTORED),
    ],
    "`optax.sgd`, `optax.adam`, `optax.adamw`": [
        Same("optax.sgd", M9, "SGD", M9),
        Same("optax.adam", {}, "Adam", {}),
        Same("optax.adamw", {}, "AdamW", {"weight_decay": 1e-4}),
    ],
    "`optax.nadam`": [
        Same("optax.nadam", {}, "NAdam", {"momentum_decay": 1e6}),
        Other("optax.nadam", {}, "NAdam", {}, 0.2),
    ],
    "`optax.rmsprop`": [
        Same("optax.rmsprop", {}, "RMSprop", {"alpha": 0.9, "eps_in_sqrt": True}),
        Other("optax.rmsprop", {"eps": LARGE}, "RMSprop", {"alpha": 0.9, "eps": LARGE}, 0.1),
    ],
    "`optax.adagrad`": [Same("optax.adagrad", {}, "Adagrad", {"initial_accumulator_value": 0.1, **BY_7})],
    "`optax.radam`, `optax.adamax`, `optax.lion`": [
        Same("optax.radam", {}, "RAdam", {}),
        Same("optax.adamax", {}, "Adamax", {}),
        Same("optax.lion", {}, "Lion", {"weight_decay": 1e-3}),
    ],
    "`optax.lamb`": [
        Same("optax.lamb", {}, "LAMB", ALWAYS),
        Other("optax.lamb", {}, "LAMB", {"weight_decay": 0.0}, 0.2),
    ],
    "`optax.lars(momentum=0.9)`": [Same("optax.lars", M9, "LARS", {**M9, "eps": 0, **ALWAYS})],
    "`optax.adan`": [Other("optax.adan", {}, "Adan", {}, 0.2)],
    # It has a test of its own.
    "`optax.clip_by_global_norm` with bfloat16 gradients": [],
    "`mlx.Adam`, `mlx.AdamW`": [
        Same("mlx.Adam", {}, "Adam", {"bias_correction": False}),
        Same("mlx.AdamW", {}, "AdamW", {"bias_correction": False}),
        Other("mlx.Adam", {}, "Adam", {}, 0.4),
    ],
    "`mlx.Adam(bias_correction=True)`, `mlx.AdamW(bias_correction=True)`": [
        Same("mlx.Adam", {"bias_correction": True}, "Adam", {}),
        Same("mlx.AdamW", {"bias_correction": True}, "AdamW", {}),
    ],
    "`mlx.Adamax`": [Other("mlx.Adamax", {}, "Adamax", {}, 0.8)],
    "`mlx.SGD`, `mlx.RMSprop`, `mlx.AdaDelta`, `mlx.Lion`": [
        Same("mlx.SGD", {}, "SGD", {}),
        Same("mlx.SGD", M9, "SGD", M9),
        Same("mlx.SGD", {**M9, "dampening": 0.5}, "SGD", {**M9, "lr": LR * 0.5}),
        Other("mlx.SGD", {**M9, "dampening": 0.5}, "SGD", {**M9, "dampening": 0.5}, 0.2),
        Same("mlx.RMSprop", {}, "RMSprop", {}),
        Same("mlx.AdaDelta", {}, "Adadelta", {}),
        Same("mlx.Lion", {}, "Lion", {}),
    ],
    "`mlx.Adagrad`": [Same("mlx.Adagrad", {}, "Adagrad", {"eps": 1e-8})],
    "`paddle.SGD`, `paddle.Momentum`, `paddle.Adam`, `paddle.AdamW`, `paddle.NAdam`, `paddle.RAdam`, `paddle.Lamb`": [
        Same("paddle.SGD", {}, "SGD", {}),
        Same("paddle.Momentum", {}, "SGD", M9),
        Same("paddle.Adam", {}, "Adam", {}),
        Same("paddle.Adam", WD, "Adam", WD),
        Same("paddle.AdamW", {}, "AdamW", {}),
        Same("paddle.NAdam", {}, "NAdam", {}),
        Same("paddle.RAdam", {}, "RAdam", {}),
        Same("paddle.Lamb", {}, "LAMB", {}),
    ],
    "`paddle.RMSProp`": [
        Same("paddle.RMSProp", {}, "RMSprop", {"alpha": 0.95, "eps": 1e-6, "eps_in_sqrt": True}),
        Other("paddle.RMSProp", {"epsilon": LARGE}, "RMSprop", {"alpha": 0.95, "eps": LARGE}, 0.1),
    ],
    "`paddle.Adagrad`, `paddle.Adadelta`, `paddle.Adamax`": [
        Same("paddle.Adagrad", {}, "Adagrad", {"eps": 1e-6}),
        Same("paddle.Adadelta", {}, "Adadelta", {"rho": 0.95, "eps": 1e-6}),
        Same("paddle.Adamax", {}, "Adamax", {}),
    ],
}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


SAID = {cells[0]: cells for cells in map(_cells, re.findall(r"^\| .*\|$", TABLE, re.MULTILINE))}
# Of rules that keep no weight decay apart there is none in Keras.
KERAS = ("SGD", "Adam", "AdamW", "RMSprop", "Nadam", "Adagrad", "Adadelta", "Adamax", "Lion", "Lamb")


def test_the_page_has_these_rows() -> None:
    assert SAID.pop(HEADING[0]) == HEADING
    assert SAID.keys() == ROWS.keys()


@pytest.mark.parametrize("row", [row for row, calls in ROWS.items() if calls])
def test_a_row_holds(row: str) -> None:
    _, _, said, seen, _ = SAID[row]
    calls = ROWS[row]
    assert seen == ", ".join(f"{name} {version_of(name)}" for name in dict.fromkeys(_framework(call) for call in calls))
    names = set(re.findall(r"`(\w+\.\w+)", row)) or {call.theirs for call in calls}
    assert {call.theirs for call in calls} == names
    for call in calls:
        found = apart(*call[:4])
        if isinstance(call, Same):
            assert found <= float(said), (call, found)
        else:
            assert found >= call.bound, (call, found)
    if not any(isinstance(call, Same) for call in calls):
        assert apart(*calls[0][:4]) == pytest.approx(float(said), rel=0.2)


def _framework(call: Same | Other) -> str:
    return call.theirs.partition(".")[0]


@pytest.mark.parametrize("name", KERAS)
def test_every_weight_decay_of_keras_is_apart(name: str) -> None:
    """Where gradients are 0, from the same params, each step takes lr * weight_decay of them."""
    start = matrices(1)[0]
    zero = [torch.zeros_like(start)] * 10
    reached = theirs(f"keras.{name}", WD, start, zero)
    torch.testing.assert_close(reached, start * (1 - LR * WD["weight_decay"]) ** 10, rtol=1e-5, atol=0)


def test_optax_lets_a_thousand_bfloat16_gradients_through_at_twice_the_limit() -> None:
    import jax.numpy as jnp
    import numpy as np
    import optax

    row = SAID["`optax.clip_by_global_norm` with bfloat16 gradients"]
    assert row[3] == f"optax {version_of('optax')}"
    clip = optax.clip_by_global_norm(1.0)
    grads = [jnp.full(16, 0.25, "bfloat16") for _ in range(1000)]
    clipped, _ = clip.update(grads, clip.init(grads))
    norm: Tensor = torch.tensor([float(np.square(np.asarray(grad, np.float64)).sum()) for grad in clipped]).sum().sqrt()
    assert norm.item() == pytest.approx(2.0, rel=0.05)


def test_ours_begin_where_theirs_do() -> None:
    start, *grads = matrices(11)
    assert not torch.equal(ours("SGD", {}, start, grads), start)
