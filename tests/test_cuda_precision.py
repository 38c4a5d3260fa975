"""The options for precision: the CUDA engine's bits are the CPU engine's."""

from __future__ import annotations

import pytest
import torch
from backends import (  # noqa: F401
    CHUNK,
    Backend,
    backend_fixture,
    counter_flags,
    spread,
)
from cases import CASES, ONE_PER_OPTIMIZER, Case
from layouts import OF_ONE_SHAPE
from options import OPTIONS, PAIRS, Options
from tiers import thinned
from twins import Twins, simple

# Codes begin at 4,096 elements; blocks of them are of 256.
SIZES = [3, 700, 4095, 4096, 4097, 5 * CHUNK + 300]


@thinned("an option knows no rule", keep=lambda case: case.name == "adamw")
@pytest.mark.parametrize(("options", "dtype"), PAIRS, ids=str)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_every_option(backend: Backend, case: Case, options: Options, dtype: torch.dtype) -> None:
    build = simple(case, **counter_flags(case), **options.of(case))
    twins = Twins(backend, build, [spread(size, dtype=dtype) for size in SIZES])
    twins.cpu._plan = None
    for _ in range(3):
        twins.give()
        twins.cpu.step()
        twins.ours.step()
    twins.check()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_variant_with_the_most_options(backend: Backend, case: Case) -> None:
    build = simple(case, **counter_flags(case), **OPTIONS[-2].of(case))
    twins = Twins(backend, build, [spread(size, dtype=torch.bfloat16) for size in SIZES])
    twins.train()


@thinned("an option knows no rule", keep=lambda case: case.name == "adamw")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_layouts(backend: Backend, case: Case, options: Options) -> None:
    shape = OF_ONE_SHAPE[0].shape
    dtype = options.dtypes[0]
    pairs = [(a, b) for a in OF_ONE_SHAPE for b in OF_ONE_SHAPE]
    twins = Twins(
        backend,
        simple(case, **options.of(case)),
        [a.place(spread(*shape, dtype=dtype)).tensor for a, _ in pairs] + [spread(64, 65, dtype=dtype).t()],
    )
    for _ in range(3):
        grads = [b.place(spread(*shape, dtype=dtype)).tensor for _, b in pairs] + [spread(65, 64, dtype=dtype)]
        twins.give(grads)
        twins.cpu.step()
        twins.ours.step()
    twins.check()


def test_copies_and_cleared_gradients(backend: Backend) -> None:
    case = ONE_PER_OPTIMIZER[1]
    twins = Twins(backend, simple(case), [spread(size) for size in SIZES])
    copies = []
    for optimizer, params in twins.both():
        mine = {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in params}
        optimizer.copy_params_to(mine)
        copies.append(mine)
    backend.adopt(twins.ours)
    for _ in range(2):
        twins.give()
        twins.cpu.step(zero_grad=True)
        twins.ours.step(zero_grad=True)
        twins.check()
    for p, q in zip(twins.cpu_params, twins.params, strict=True):
        assert not q.grad.any()
        assert torch.equal(copies[0][p], p.detach().bfloat16())
        assert torch.equal(copies[1][q].cpu(), copies[0][p])
