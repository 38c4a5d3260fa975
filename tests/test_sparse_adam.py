"""SparseAdam against torch's: the touched rows alone, every dtype, checkpoints, refusals."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from support import assert_identical, every_isa
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import _C

ROWS = 50


def gradient(shape: tuple[int, ...], sparse_dims: int, count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """With indices in no order, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randint(size, (count,), generator=generator) for size in shape[:sparse_dims]])
    values = torch.randn(count, *shape[sparse_dims:], generator=generator).to(dtype)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((ROWS, 8), 1),
    ((ROWS,), 1),
    ((7, 6), 2),
    ((9, 4, 5), 1),
    ((9, 4, 5), 2),
    ((ROWS, 67), 1),
]


def pair(dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    values = [torch.randn(shape).to(dtype) for shape, _ in SHAPES]
    return tuple(
        module.SparseAdam([Parameter(v.clone()) for v in values], **{"lr": 0.1, "betas": (0.8, 0.9), **kwargs})
        for module in (fusedopt, torch.optim)
    )  # type: ignore[return-value]


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return optimizer.param_groups[0]["params"]


def train(optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        for i, (p, (shape, sparse_dims)) in enumerate(zip(params_of(optimizer), SHAPES, strict=True)):
            p.grad = gradient(shape, sparse_dims, 12, p.dtype, seed=100 * step + i)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kwargs", [{}, {"maximize": True}, {"eps": 1e-2}, {"lr": torch.tensor(0.05)}], ids=str)
def test_a_dozen_steps_agree_with_torch(dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
    ours, torchs = pair(dtype, **kwargs)
    train(ours, 12)
    train(torchs, 12)
    torch.testing.assert_close(params_of(ours), params_of(torchs))
    for p, q in zip(params_of(ours), params_of(torchs), strict=True):
        assert list(ours.state[p]) == list(torchs.state[q])
        assert ours.state[p]["step"] == torchs.state[q]["step"] == 12
        assert type(ours.state[p]["step"]) is int
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours.state[p][key], torchs.state[q][key])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_params_are_no_further_from_float64_than_torchs(dtype: torch.dtype) -> None:
    ours, torchs = pair(dtype)
    exact = torch.optim.SparseAdam([Parameter(p.detach().double()) for p in params_of(ours)], lr=0.1, betas=(0.8, 0.9))
    for optimizer in (ours, torchs, exact):
        for step in range(8):
            for i, (p, (shape, sparse_dims)) in enumerate(zip(params_of(optimizer), SHAPES, strict=True)):
                p.grad = gradient(shape, sparse_dims, 12, dtype, seed=100 * step + i).to(p.dtype)
            optimizer.step()
    for p, q, e in zip(params_of(ours), params_of(torchs), params_of(exact), strict=True):
        assert (p.double() - e).abs().mean() <= (q.double() - e).abs().mean() * 1.01


def test_rows_without_a_gradient_keep_every_bit() -> None:
    p = Parameter(torch.randn(ROWS, 8))
    ours = fusedopt.SparseAdam([p], lr=0.1)
    touched = torch.tensor([3, 41, 7])
    for _ in range(3):
        before, state = p.detach().clone(), {k: v.clone() for k, v in ours.state[p].items() if k != "step"}
        p.grad = torch.sparse_coo_tensor(touched[None], torch.randn(3, 8), (ROWS, 8), check_invariants=True)
        ours.step()
        others = torch.ones(ROWS, dtype=torch.bool)
        others[touched] = False
        assert torch.equal(p[others], before[others])
        assert (p[touched] != before[touched]).all()
        for key, value in state.items():
            assert torch.equal(ours.state[p][key][others], value[others])


@every_isa
def test_many_rows_on_any_number_of_threads_and_any_instruction_set_give_the_same_bits(isa: str) -> None:
    weight = torch.randn(20_000, 33)
    rows = torch.randperm(20_000)[:9_000][None]
    values = [torch.randn(9_000, 33) for _ in range(3)]
    results = []
    for name, threads in (("generic", 1), (isa, 1), (isa, 2), (isa, 3), (isa, 5)):
        _C.use_isa(name)
        torch.set_num_threads(threads)
        p = Parameter(weight.clone())
        ours = fusedopt.SparseAdam([p])
        for v in values:
            p.grad = torch.sparse_coo_tensor(rows, v, weight.shape, check_invariants=True)
            ours.step()
        results.append([p.detach(), ours.state[p]["exp_avg"], ours.state[p]["exp_avg_sq"]])
    for result in results[1:]:
        assert_identical(result, results[0])


def test_an_empty_gradient_counts_as_a_step() -> None:
    ours, torchs = pair()
    for optimizer in (ours, torchs):
        train(optimizer, 2)
        for p in params_of(optimizer):
            p.grad = torch.sparse_coo_tensor(
                torch.zeros(1, 0), torch.zeros(0, *p.shape[1:]), p.shape, check_invariants=True
            )
        optimizer.step()
        assert [s["step"] for s in optimizer.state.values()] == [3] * len(SHAPES)
        train(optimizer, 1, first=3)
    torch.testing.assert_close(params_of(ours), params_of(torchs))


def test_embeddings_train_as_with_torch() -> None:
    torch.manual_seed(1)
    models = [torch.nn.EmbeddingBag(ROWS, 4, sparse=True)]
    models.append(copy.deepcopy(models[0]))
    optimizers = [fusedopt.SparseAdam(models[0].parameters()), torch.optim.SparseAdam(models[1].parameters())]
    for step in range(6):
        words = torch.randint(ROWS, (5, 7), generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(words).square().sum().backward()
            assert model.weight.grad.is_sparse
            optimizer.step()
    torch.testing.assert_close(models[0].weight, models[1].weight)


def test_checkpoints_both_ways() -> None:
    ours, torchs = pair()
    train(ours, 3)
    train(torchs, 3)
    for source, target in ((ours, torchs), (torchs, ours)):
        buffer = io.BytesIO()
        torch.save(source.state_dict(), buffer)
        buffer.seek(0)
        target.load_state_dict(torch.load(buffer, weights_only=True))
        train(source, 2, first=3)
        train(target, 2, first=3)
        torch.testing.assert_close(params_of(ours), params_of(torchs))


def test_a_skipped_step_changes_nothing_and_the_scale_is_divided_out() -> None:
    p, q = Parameter(torch.ones(ROWS, 8)), Parameter(torch.ones(ROWS, 8))
    ours, plain = fusedopt.SparseAdam([p]), fusedopt.SparseAdam([q])
    grad = gradient((ROWS, 8), 1, 12, torch.float32, seed=0)
    p.grad, q.grad = grad * 4, grad
    ours.found_inf, ours.grad_scale = torch.tensor(2.0), torch.tensor(4.0)
    ours.step()
    assert ours.step_skipped
    assert (p == 1).all()
    assert not ours.state
    ours.found_inf = torch.tensor(0.0)
    ours.step()
    plain.step()
    assert not ours.step_skipped
    assert torch.equal(p, q)


def test_versions_move_and_the_gradient_is_left_alone() -> None:
    p = Parameter(torch.ones(ROWS, 8))
    p.grad = gradient((ROWS, 8), 1, 12, torch.float32, seed=0)
    grad, version, values = p.grad, p._version, p.grad._values().clone()
    fusedopt.SparseAdam([p]).step()
    assert p.grad is grad
    assert not grad.is_coalesced()
    assert torch.equal(grad._values(), values)
    assert p._version > version


def test_params_that_the_engine_does_not_take_are_left_to_torch() -> None:
    base = torch.randn(8, ROWS)
    params = [Parameter(base.t()), Parameter(torch.randn(ROWS, 8))]
    twins = [Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params]
    ours, torchs = fusedopt.SparseAdam(params), torch.optim.SparseAdam(twins)
    for step in range(3):
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            p.grad = q.grad = gradient((ROWS, 8), 1, 12, torch.float32, seed=10 * step + i)
        ours.step()
        torchs.step()
    torch.testing.assert_close(params, twins)


def test_refusals_come_before_any_write() -> None:
    ours, _ = pair()
    train(ours, 1)
    before = copy.deepcopy([[p.detach() for p in params_of(ours)], ours.state_dict()["state"]])
    last = params_of(ours)[-1]
    last.grad = torch.randn_like(last)
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam instead"):
        ours.step()
    bad = torch.sparse_coo_tensor([[3, ROWS]], torch.randn(2, 67), (ROWS + 1, 67), check_invariants=True)
    last.grad = torch.sparse_coo_tensor(bad._indices(), bad._values(), (ROWS, 67), check_invariants=False)
    with pytest.raises(RuntimeError, match=r"param 5 of group 0: its gradient has indices outside of the param"):
        ours.step()
    assert_identical([[p.detach() for p in params_of(ours)], ours.state_dict()["state"]], before)


def test_a_param_that_comes_to_lie_otherwise() -> None:
    """States keep their order where the param gets another, as after a call of contiguous()."""
    ends = []
    for package in (fusedopt, torch.optim):
        param = torch.nn.Parameter(torch.arange(35.0).view(7, 5).mT)
        optimizer = package.SparseAdam([param])
        for _ in range(3):
            param.grad = torch.sparse_coo_tensor(torch.tensor([[0, 3]]), torch.ones(2, 7), (5, 7))
            optimizer.step()
            param.data = param.data.contiguous()
        ends.append(param.detach())
    torch.testing.assert_close(*ends)
