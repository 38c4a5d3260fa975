"""DTensors for the cases of several processes, and what they are compared with: the same run of whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from support import assert_identical, params_of
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt
from fusedopt._core.shards import divided

# Two processes have the same of the first, one more of the second, and nothing of the third is left for the other.
SHAPES: tuple[tuple[int, ...], ...] = ((10, 3), (3, 10), (1,), (5, 4, 2))
PLACEMENTS: tuple[tuple[Any, ...], ...] = ((Shard(0),), (Replicate(),))


def require_muon() -> None:
    if "Muon" not in fusedopt.__all__:
        pytest.skip("torch has Muon from 2.9 on")


# Its full_tensor() is wrong or raises where a second dimension of the mesh leaves nothing, or columns.
OF_2_6: bool = torch.__version__ < (2, 7)  # type: ignore[operator]


def require_2_7(why: str) -> None:
    if OF_2_6:
        pytest.skip(f"torch 2.6 {why}")


def require_fsdp_of_cpus() -> None:
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("FSDP2 of torch 2.6 trains nothing on a CPU, whose streams record no events there")


@cache
def mesh_of(*sizes: int) -> Any:
    return init_device_mesh("cpu", sizes)


def numbers(shapes: Sequence[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def place(tensor: Tensor, mesh: Any, placements: Sequence[Any]) -> Any:
    """A part of a tensor that every process has: nothing is sent, so not all of them need to ask."""
    local = divided(tensor, mesh, placements).clone()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def whole(tensor: Any) -> Any:
    if not isinstance(tensor, DTensor):
        return tensor
    # Which neither gloo nor NCCL sends.
    if tensor.dtype == torch.int16:
        return tensor.int().full_tensor().short()
    return tensor.full_tensor()


@contextmanager
def counted_calls(of: str = "all_reduce") -> Iterator[list[Any]]:
    """The calls of one of torch.distributed's functions that are made within."""
    calls: list[Any] = []
    original = getattr(torch.distributed, of)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    setattr(torch.distributed, of, counted)
    try:
        yield calls
    finally:
        setattr(torch.distributed, of, original)


class Pair:
    """Two optimizers of one making over the same numbers: of DTensors, and of whole tensors."""

    def __init__(
        self,
        make: Callable[[list[Parameter]], Optimizer],
        placements: Sequence[Any] = (Shard(0),),
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        *,
        mesh: Any = None,
        dtype: torch.dtype = torch.float32,
        plain: Sequence[int] = (),
    ) -> None:
        self.mesh = mesh_of(torch.distributed.get_world_size()) if mesh is None else mesh
        self.placements, self.shapes, self.plain, self.dtype = placements, shapes, plain, dtype
        self.make = make
        self.sharded, self.whole = (make(self.params(sharded)) for sharded in (True, False))

    def params(self, sharded: bool) -> list[Parameter]:
        return [
            Parameter(place(t, self.mesh, self.placements) if sharded and i not in self.plain else t.clone())
            for i, t in enumerate(numbers(self.shapes, 1, self.dtype))
        ]

    def give_grads(self, seed: int) -> None:
        grads = numbers(self.shapes, 100 + seed, self.dtype)
        for i, (p, q, grad) in enumerate(zip(params_of(self.sharded), params_of(self.whole), grads, strict=True)):
            q.grad = grad
            p.grad = grad.clone() if i in self.plain else place(grad, self.mesh, self.placements)

    def step(self, count: int = 3, first: int = 0, **kwargs: Any) -> None:
        for i in range(first, first + count):
            self.give_grads(i)
            for optimizer in (self.sharded, self.whole):
                optimizer.step(**kwargs)  # type: ignore[call-arg]

    def assert_same(self) -> None:
        """Params and states have the same bits."""
        for p, q in zip(params_of(self.sharded), params_of(self.whole), strict=True):
            assert_identical(whole(p.detach()), q)
            mine, its = self.sharded.state.get(p, {}), self.whole.state.get(q, {})
            assert list(mine) == list(its)
            for key in its:
                assert_identical(whole(mine[key]), its[key])
                if isinstance(p, DTensor) and isinstance(its[key], Tensor) and its[key].dim():
                    assert mine[key].placements == p.placements
