"""Matrices of which processes have parts, whole for products: one all-gather for all that are divided alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def gathered(params: Sequence[Any], parts: Sequence[Tensor], refused: bool) -> list[Tensor] | None:
    """Of each DTensor the whole of what this process has a part of, in bfloat16; None if a process refuses its step.

    Params that one dimension of a mesh divides by rows or by columns go together, all of them in the usual case of one
    mesh of one dimension; those that several divide take an all-gather each.
    """
    whole: list[Any] = [None] * len(params)
    together: dict[tuple[Any, int], list[int]] = {}
    with torch.no_grad():
        for i, param in enumerate(params):
            dim = _one_dimension(param)
            if dim is not None:
                together.setdefault((param.device_mesh, dim), []).append(i)
        for (mesh, dim), indices in together.items():
            made = _gather([params[i] for i in indices], [parts[i] for i in indices], mesh, dim, refused)
            if made is None:
                return None
            for i, matrix in zip(indices, made, strict=True):
                whole[i] = matrix
        for i, param in enumerate(params):
            if whole[i] is None:
                whole[i] = _as(param, parts[i], param.placements).full_tensor()
    return whole


def part_of(param: Any, whole: Tensor) -> Tensor:
    """What this process has of a matrix that is divided as the param is. Nothing is sent."""
    from torch.distributed.tensor import Replicate

    with torch.no_grad():
        dim = _one_dimension(param)
        if dim is not None:
            axis = param.placements[dim].dim
            start, length = _share(param, dim, param.device_mesh.get_local_rank(dim))
            return whole.narrow(axis, start, length)
        everywhere = _as(param, whole, [Replicate()] * param.device_mesh.ndim)
        divided: Tensor = everywhere.redistribute(placements=param.placements).to_local()
        return divided


def _as(param: Any, local: Tensor, placements: Any) -> Any:
    kind: Any = type(param.data)
    return kind.from_local(
        local, param.device_mesh, placements, run_check=False, shape=param.shape, stride=param.stride()
    )


def _one_dimension(param: Any) -> int | None:
    """The only dimension of its mesh that divides it, if that cuts it into pieces of equal size."""
    from torch.distributed.tensor import Shard

    mesh = param.device_mesh
    dims = [d for d, place in enumerate(param.placements) if mesh.size(d) > 1 and not place.is_replicate()]
    return dims[0] if len(dims) == 1 and type(param.placements[dims[0]]) is Shard else None


def _share(param: Any, dim: int, rank: int) -> tuple[int, int]:
    """Where a process's rows or columns begin, and how many there are, as torch.chunk has them."""
    size = param.shape[param.placements[dim].dim]
    most = -(-size // param.device_mesh.size(dim))
    start = min(rank * most, size)
    return start, min(most, size - start)


def _gather(params: list[Any], parts: list[Tensor], mesh: Any, dim: int, refused: bool) -> list[Tensor] | None:
    processes = mesh.size(dim)
    # Of every process as much: what the first has of each, and a number that says whether it refuses its step.
    sizes = [p.numel() // p.shape[p.placements[dim].dim] * _share(p, dim, 0)[1] for p in params]
    send = torch.zeros(sum(sizes) + 1, dtype=torch.bfloat16, device=parts[0].device)
    for at, part in zip(_starts(sizes), parts, strict=True):
        send[at : at + part.numel()] = part.reshape(-1)
    send[-1] = float(refused)
    # A backend that has no bfloat16 sends bytes.
    received = torch.empty(processes * send.numel() * 2, dtype=torch.uint8, device=send.device)
    # As torch 2.13 names it, and those before.
    distributed: Any = torch.distributed
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    gather(received, send.view(torch.uint8), group=mesh.get_group(dim))
    rows = received.view(torch.bfloat16).view(processes, -1)
    if rows[:, -1].any():
        return None
    made = []
    for at, p in zip(_starts(sizes), params, strict=True):
        axis, pieces = p.placements[dim].dim, []
        for rank in range(processes):
            shape = list(p.shape)
            shape[axis] = _share(p, dim, rank)[1]
            count = torch.Size(shape).numel()
            pieces.append(rows[rank, at : at + count].view(shape))
        made.append(torch.cat(pieces, axis))
    return made


def _starts(sizes: Sequence[int]) -> list[int]:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts[:-1]
