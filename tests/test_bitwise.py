"""Results are the same bits for every instruction set, thread count, split and position in the tensor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import CASES, Case, named
from support import every_isa, vector_isa
from tiers import of_a_kind, thinned

from fusedopt import _C

STORAGES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def two_storages(case: Case, dtype: torch.dtype) -> bool:
    """One of which an element is a number, and one that is converted."""
    return of_a_kind(case) and dtype in (torch.float32, torch.bfloat16)


def spread(*size: int, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers over many orders of magnitude: rounding differs in most of their bits."""
    return (torch.randn(*size, dtype=torch.float64) * torch.exp(3 * torch.randn(*size, dtype=torch.float64))).to(dtype)


def steps(case: Case, values: list[torch.Tensor], grads: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    params = [torch.nn.Parameter(value.clone()) for value in values]
    optimizer = case.ours(params)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad
        optimizer.step()
    states = [t for p in params for t in optimizer.state[p].values()] if optimizer.state else []
    return [p.detach() for p in params] + states


def assert_same_bits(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        assert torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


@thinned("every mix of sizes, storages and threads is the engine test's", keep=two_storages, together=0)
@pytest.mark.parametrize("dtype", STORAGES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@vector_isa
def test_instruction_sets_agree(case: Case, dtype: torch.dtype, isa: str) -> None:
    sizes = [1, 7, 63, 64, 65, 511, 512, 513, 1029]
    values = [spread(n, dtype=dtype) for n in sizes]
    grads = [[spread(n, dtype=dtype) for n in sizes] for _ in range(4)]
    results = steps(case, values, grads)
    _C.use_isa("generic")
    assert_same_bits(results, steps(case, values, grads))


@pytest.mark.parametrize("options", [{}, {"state_dtype": "float16"}, {"master_weights": "float32"}], ids=str)
@pytest.mark.parametrize("name", ["sgd-momentum", "adamw", "lamb"])
@vector_isa
def test_every_float16_is_converted_alike(name: str, options: dict[str, str], isa: str) -> None:
    """With NaNs of all kinds, in blocks and in a tail; whatever instructions a processor has for it."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values, grads = [every[:-3].clone()], [[every[torch.randperm(2**16)][:-3]] for _ in range(2)]
    case = named(name)
    case = Case(case.name, case.optimizer, {**case.kwargs, **options})
    results = steps(case, values, grads)
    _C.use_isa("generic")
    assert_same_bits(results, steps(case, values, grads))


@thinned("every mix of sizes, storages and threads is the engine test's", keep=of_a_kind, together=0)
@pytest.mark.parametrize("case", CASES, ids=str)
@every_isa
@pytest.mark.usefixtures("isa")
def test_position_does_not_matter(case: Case) -> None:
    """One tensor of equal elements: vector body, tail and every offset must give equal results."""
    for dtype in STORAGES:
        n = 2 * 512 + 71
        base = torch.full((n + 3,), 0.7312, dtype=dtype)[3:]
        results = steps(case, [base], [[torch.full((n,), g, dtype=dtype)] for g in (0.113, -1.7, 3.1)])
        for tensor in results:
            if tensor.numel() > 1:
                assert_same_bits([tensor], [tensor[0].expand(n)])


@thinned("every mix of sizes, storages and threads is the engine test's", keep=two_storages, together=0)
@pytest.mark.parametrize("dtype", STORAGES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads_and_splits_agree(case: Case, dtype: torch.dtype) -> None:
    sizes = [40_001, 3, 70_003, 64, 20_000]
    values = [spread(n, dtype=dtype) for n in sizes]
    grads = [[spread(n, dtype=dtype) for n in sizes] for _ in range(2)]
    torch.set_num_threads(1)
    expected = steps(case, values, grads)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert_same_bits(steps(case, values, grads), expected)
        assert torch.get_num_threads() == threads


@thinned("how tensors are divided knows no rule", keep=of_a_kind, together=0)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_packing_does_not_matter(case: Case) -> None:
    """A tensor stepped alone, beside others, or as a strided view has the same bits."""
    values = [spread(n, dtype=torch.float32) for n in (100, 700)]
    grads = [[spread(n, dtype=torch.float32) for n in (100, 700)] for _ in range(3)]
    together = steps(case, values, grads)
    alone = steps(case, values[1:], [g[1:] for g in grads])
    assert_same_bits(together[1:2], alone[:1])
    strided = torch.zeros(700, 2)
    strided[:, 1] = values[1]
    param = strided[:, 1].requires_grad_()
    optimizer = case.ours([param])
    for step in grads:
        param.grad = step[1]
        optimizer.step()
    assert_same_bits([param.detach()], alone[:1])


def test_rounding_mode_of_the_caller_reaches_all_threads() -> None:
    """Flushing denormals is a property of a thread; a result must not depend on which thread an element fell to."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        param = torch.nn.Parameter(torch.full((200_000,), 1e-39))
        param.grad = torch.zeros_like(param)
        torch.set_num_threads(2)
        import fusedopt

        fusedopt.SGD([param], lr=1.0).step()
    finally:
        torch.set_flush_denormal(False)
    assert param.unique().numel() == 1


@every_isa
def test_environment_forces_an_instruction_set(isa: str) -> None:
    code = "import fusedopt; cpu = fusedopt.capabilities()['cpu']; print(cpu['chosen'], cpu['reason'])"
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FUSEDOPT_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout.split() == [isa, "FUSEDOPT_CPU_ISA"]


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="'sse9' is not available here; use one of: generic"):
        _C.use_isa("sse9")
