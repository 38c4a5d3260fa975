"""A rule swept over given tensors has the same bits on the CUDA engine, for rows that are looked up, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import NEEDS_GPU, assert_same_memory, gpu, spread
from build import build
from torch import Tensor

from fusedopt import _C

Place = Callable[[Tensor], Tensor]


@pytest.fixture(params=["emulated", "cuda"])
def there(request: pytest.FixtureRequest) -> tuple[Any, Place]:
    """The Sweep of the other engine, and how tensors come to it."""
    if request.param == "emulated":
        engine, control = build()
        control.numbers_on_device(True)
        return engine.Sweep, lambda tensor: tensor.clone(memory_format=torch.preserve_format)
    if not gpu():
        pytest.skip(NEEDS_GPU)
    return _C.Sweep, lambda tensor: tensor.cuda()


def check(
    there: tuple[Any, Place], rule: str, hypers: list[float], counters: list[float], tensors: dict[str, Any]
) -> None:
    """Three sweeps with the same table on both engines, the last with half of the tensors."""
    sweep, place = there
    copies = {
        key: [place(t) for t in ts] if key != "states" else [[place(t) for t in ts_] for ts_ in ts]
        for key, ts in tensors.items()
    }
    here, other = _C.Sweep(rule), sweep(rule)
    for step in range(3):
        of = slice(0, None if step < 2 else len(tensors["params"]) // 2)
        now = [c + step for c in counters]
        here(hypers, now, multiplier=0.5, **{key: ts[of] for key, ts in tensors.items()})
        other(hypers, now, multiplier=0.5, **{key: ts[of] for key, ts in copies.items()})
        for mine, theirs in zip(tensors["params"], copies["params"], strict=True):
            assert_same_memory(theirs.cpu(), mine)
        for mine_, theirs_ in zip(tensors["states"], copies["states"], strict=True):
            for mine, theirs in zip(mine_, theirs_, strict=True):
                assert_same_memory(theirs.cpu(), mine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_rows_by_index(there: tuple[Any, Place], dtype: torch.dtype) -> None:
    tensors: dict[str, Any] = {"params": [], "grads": [], "states": [], "slices": []}
    for rows, width, taken in [(50, 8, 12), (3, 1, 3), (2000, 33, 700), (70, 1030, 5)]:
        tensors["params"].append(spread(rows, width, dtype=dtype))
        tensors["grads"].append(spread(taken, width, dtype=dtype))
        tensors["states"].append([spread(rows, width, dtype=dtype).abs() for _ in range(2)])
        tensors["slices"].append(torch.randperm(rows)[:taken])
    check(there, "sparse_adam", [0.1, 0.9, 0.99, 1e-8], [3.0], tensors)


@pytest.mark.parametrize("rule", ["muon_momentum", "muon_update"])
def test_strides_and_mixes(there: tuple[Any, Place], rule: str) -> None:
    shapes = [(24, 16), (1, 5), (67, 33), (40, 30)]
    params = [spread(*shape) if rule == "muon_update" else spread(*shape, dtype=torch.bfloat16) for shape in shapes]
    grads = [spread(*shape[::-1]).t() for shape in shapes]
    if rule == "muon_update":
        grads = [g.bfloat16() for g in grads]
    states = [[spread(*shape)] if rule == "muon_momentum" else [] for shape in shapes]
    hypers = [0.9, 1.0] if rule == "muon_momentum" else [0.1, 0.2, 0.3]
    check(there, rule, hypers, [], {"params": params, "grads": grads, "states": states})


def test_what_a_sweep_refuses() -> None:
    sweep, x = _C.Sweep("muon_update"), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="no rule is named 'nothing'"):
        _C.Sweep("nothing")([], [], [x], [x], [[]])
    with pytest.raises(ValueError, match="lists of different lengths"):
        sweep([0.1, 0.1, 0.0], [], [x, x], [x], [[]])
    with pytest.raises(ValueError, match="tensor 0 of a sweep of 'muon_update': sizes differ"):
        sweep([0.1, 0.1, 0.0], [], [x], [torch.zeros(3, 4)], [[]])
    with pytest.raises(ValueError, match="not all dense and real on one device"):
        sweep([0.1, 0.1, 0.0], [], [x], [x.to_sparse()], [[]])
    with pytest.raises(ValueError, match="contiguous tensor of int64"):
        sweep([0.1, 0.1, 0.0], [], [x], [x[:2]], [[]], slices=[torch.tensor([0.0, 1.0])])
    with pytest.raises(ValueError, match="slices are of contiguous tensors"):
        sweep([0.1, 0.1, 0.0], [], [x.t()], [torch.zeros(2, 4)], [[]], slices=[torch.tensor([0, 1])])
    with pytest.raises(TypeError, match="a sweep takes tensors"):
        sweep([0.1, 0.1, 0.0], [], [1], [x], [[]])
    assert (x == 0).all()
