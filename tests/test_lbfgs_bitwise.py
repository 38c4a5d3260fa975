"""LBFGS adds in one order: the same bits for every instruction set, thread count and division into tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import EMULATED, assert_identical, snapshot, vector_isa
from test_lbfgs import FIXED, KINDS, flat
from test_lbfgs_inputs import Quadratic, leaves, run, values
from tiers import thinned

import fusedopt
from fusedopt import _C

SHAPES = [(3000,), *[(17,)] * 90, (130, 50), (1024,), (1,), (70_003,)]
DTYPES = [torch.float32, torch.float64]


def course(arguments: dict[str, Any], dtype: torch.dtype) -> Any:
    """Params and state after a history of three pairs has wrapped around."""
    optimizer = run(
        fusedopt.LBFGS, Quadratic(leaves([v.to(dtype) for v in values(*SHAPES)])), history_size=3, **arguments
    )
    return snapshot(optimizer)


@pytest.mark.skipif(EMULATED, reason="one instruction set")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arguments", KINDS)
@vector_isa
@pytest.mark.usefixtures("isa")
def test_instruction_sets_agree(arguments: dict[str, Any], dtype: torch.dtype) -> None:
    found = course(arguments, dtype)
    _C.use_isa("generic")
    assert_identical(found, course(arguments, dtype))


@thinned("how sums are divided among threads and what line search asks for them are two things")
@pytest.mark.skipif(EMULATED, reason="one thread")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arguments", KINDS)
def test_thread_counts_agree(arguments: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # The smallest sweep, over three vectors, is worth a team from here on; torch's sum in the closure has one thread.
    monkeypatch.setattr("test_lbfgs_bitwise.SHAPES", [*SHAPES, (1_000_003,)])
    monkeypatch.setattr(Quadratic, "closure", single_threaded(Quadratic.closure))
    torch.set_num_threads(1)
    expected = course(arguments, dtype)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert_identical(course(arguments, dtype), expected)


def single_threaded(closure: Any) -> Any:
    def wrapped(self: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return closure(self)
        finally:
            torch.set_num_threads(threads)

    return wrapped


def test_division_into_tensors_does_not_matter() -> None:
    """A vector is summed as one, however many tensors it is made of."""
    whole = torch.cat([v.flatten() for v in values(*SHAPES)])
    one = Quadratic(leaves([whole]))
    many = Quadratic(leaves(values(*SHAPES)))
    many.terms = [
        (w.view(s), c.view(s))
        for w, c, s in zip(
            *(part.split([p.numel() for p in many.params]) for part in one.terms[0]), SHAPES, strict=True
        )
    ]
    ours = [run(fusedopt.LBFGS, problem, **FIXED, tolerance_change=0) for problem in (one, many)]
    assert_identical(flat(ours[0]._params), flat(ours[1]._params))
    assert_identical(*(optimizer.state[optimizer._params[0]]["old_dirs"] for optimizer in ours))
