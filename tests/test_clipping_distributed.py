"""Two processes that each hold a part of a model agree on the norm of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import case, run_all
from torch.nn import Parameter

import fusedopt

SHAPES = [(40, 3), (1500,), (7,), (2, 2)]
MAX_NORM = 0.5


def whole_model() -> list[Parameter]:
    generator = torch.Generator().manual_seed(3)
    params = []
    for shape in SHAPES:
        params.append(Parameter(torch.zeros(shape)))
        params[-1].grad = torch.randn(shape, generator=generator)
    return params


def reduced(params: list[Any], order: float) -> torch.Tensor:
    """The norm of the whole from the part that this process holds."""
    op = torch.distributed.ReduceOp.MAX if order == float("inf") else torch.distributed.ReduceOp.SUM
    total = fusedopt.local_grad_norm(params, order)
    torch.distributed.all_reduce(total, op=op)
    return fusedopt.norm_from_local(total, order)


@case()
def norm_of_halves_of_a_model(rank: int) -> None:
    """Each process holds some of the params."""
    for order in (2.0, 1.0, 3.0, float("inf")):
        expected = whole_model()
        whole = fusedopt.clip_grad_norm_(expected, MAX_NORM, order)
        mine = whole_model()[rank::2]
        norm = reduced(mine, order)
        torch.testing.assert_close(norm.float(), whole, rtol=1e-6, atol=0)
        torch.nn.utils.clip_grads_with_norm_(mine, MAX_NORM, norm)
        torch.testing.assert_close([p.grad for p in mine], [p.grad for p in expected[rank::2]])


@case()
def norm_of_shards_of_params(rank: int) -> None:
    """Each process holds some rows of every param: DTensors, which an optimizer clips by the norm of the whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    params = []
    for param in whole_model():
        params.append(Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])))
        params[-1].grad = distribute_tensor(param.grad, mesh, [Shard(0)])
    whole = fusedopt.clip_grad_norm_(whole_model(), MAX_NORM)
    torch.testing.assert_close(reduced(params, 2.0).float(), whole, rtol=1e-6, atol=0)

    optimizers: list[Any] = [fusedopt.SGD(params, lr=1.0), fusedopt.SGD(whole_model(), lr=1.0)]
    for optimizer in optimizers:
        optimizer.max_grad_norm = MAX_NORM
        optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm, whole)
    for p, q in zip(params, optimizers[1].param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p.full_tensor(), q)

    # As from torch's function, a DTensor.
    norm: Any = fusedopt.clip_grad_norm_(params, MAX_NORM)
    torch.testing.assert_close(norm.full_tensor(), whole)


@pytest.mark.parametrize("name", ["norm_of_halves_of_a_model", "norm_of_shards_of_params"])
def test_two_processes(tmp_path: Path, name: str) -> None:
    told = run_all(2, ["test_clipping_distributed"], tmp_path, [name])
    assert not told[name], told[name]
