"""Parameters, gradients, training runs and comparisons that several test files share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fusedopt import _C

if TYPE_CHECKING:
    from cases import Case

# A matrix, a vector, a scalar, an empty tensor and a length that fills no vector register.
SHAPES: tuple[tuple[int, ...], ...] = ((5, 7), (9,), (), (0, 3), (67,))

# The emulated CUDA engine steps everything (see conftest.py).
EMULATED = _C.cuda_built_for() == "emulated"
# With conftest's fixture: one test for each, so that a run counts those that this processor could not run.
every_isa = pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"], indirect=True)
vector_isa = pytest.mark.parametrize("isa", ["avx2", "avx512"], indirect=True)
# Keys of states that are numbers and not tensors like the param.
COUNTERS = frozenset(name for rule in _C.rules().values() for name in rule["counters"])
COMPATIBILITY = Path(__file__).parent.parent / "docs/compatibility.md"


def stands(defect: str) -> bool | None:
    """Whether docs/compatibility.md has a defect in the installed torch; None where nobody has looked."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in COMPATIBILITY.read_text().splitlines()]
    (head,) = (row for row in rows if row[1:2] == ["defect"])
    (row,) = (row for row in rows if row[:1] == [defect])
    minor = ".".join(torch.__version__.split(".")[:2])
    found = [cell for name, cell in zip(head, row, strict=True) if name.startswith(f"torch {minor}.")]
    return {"yes": True, "no": False}.get(found[0]) if found else None


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_params(
    shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def clone_params(params: Iterable[Tensor]) -> list[Parameter]:
    return [Parameter(p.detach().clone()) for p in params]


def params_of(optimizer: Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_grads(params: Iterable[Tensor], seed: int) -> None:
    """Gradients that depend on the seed and the position alone, so that two runs can be fed alike."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def train(optimizer: Optimizer, steps: int = 3, first: int = 0) -> None:
    for i in range(first, first + steps):
        give_grads(params_of(optimizer), i)
        optimizer.step()


def assert_identical(actual: Any, expected: Any) -> None:
    """Equal bit patterns: -0.0 is not 0.0 here, and NaN equals itself."""
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor)
        assert (actual.dtype, actual.shape, actual.layout) == (expected.dtype, expected.shape, expected.layout)
        dense = [t.detach().to_dense() if t.is_sparse else t.detach() for t in (actual, expected)]
        raw = [t.contiguous().clone().reshape(-1).view(torch.uint8) for t in dense]
        assert torch.equal(*raw), f"bits differ:\n{actual}\n{expected}"
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_identical(actual[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_identical(a, e)
    else:
        assert type(actual) is type(expected)
        assert actual == expected


def assert_same(case: Case, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal bits, but for the rounding of norms whose terms were added in another order."""
    if case.elementwise:
        return assert_identical(list(actual), list(expected))
    for a, e in zip(actual, expected, strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        torch.testing.assert_close(a, e, rtol=2 * torch.finfo(e.dtype).eps, atol=1e-7)


def assert_close(actual: Optimizer, expected: Optimizer) -> None:
    """Params and states of two optimizers agree to torch.testing's default tolerances."""
    for p, q in zip(params_of(actual), params_of(expected), strict=True):
        torch.testing.assert_close(p, q)
    assert _owners(actual) == _owners(expected)
    for mine, theirs in zip(actual.state.values(), expected.state.values(), strict=True):
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(mine[name], value)
            else:
                assert mine[name] == value


def _owners(optimizer: Optimizer) -> list[int | None]:
    """For each state, in order, the index of its param; None once the param has left the groups."""
    index = {id(p): i for i, p in enumerate(params_of(optimizer))}
    return [index.get(id(p)) for p in optimizer.state]


def snapshot(optimizer: Optimizer) -> Any:
    """An independent copy of everything a step may write, to compare with `assert_identical`."""
    copied = torch.utils._pytree.tree_map(
        lambda x: x.detach().clone() if isinstance(x, Tensor) else x, optimizer.state_dict()["state"]
    )
    return [[p.detach().clone() for p in params_of(optimizer)], copied]


def versions(optimizer: Optimizer) -> list[int]:
    """Version counters of all params, gradients and state tensors."""
    tensors: list[Tensor] = []
    for p in params_of(optimizer):
        tensors += [p] + ([] if p.grad is None else [p.grad])
        tensors += [value for value in optimizer.state.get(p, {}).values() if isinstance(value, Tensor)]
    return [t._version for t in tensors]


def save_and_load(state_dict: Any, weights_only: bool = True) -> Any:
    """Through a file's bytes, as a checkpoint travels."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def outcome(act: Callable[[], Any]) -> tuple[type[BaseException], str] | None:
    """The type and the text up to the colon of what `act` raises; None if it succeeds."""
    try:
        act()
    except Exception as error:
        return type(error), str(error).split(":")[0]
    return None
