"""DTensors, of which a process has a part: norms of the whole, and states as steps, files and conversions have them."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

ANOTHER_REFUSES = (
    "another process has refused its step, for a reason that it says, and the norm of all gradients, of which it has "
    "some, cannot be made; nothing has been written here"
)
# What a process has for itself alone.
_CODES = (torch.int8, torch.uint8)


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; the class is not imported for the question, which takes half a second."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "to_local")


@contextmanager
def grads_placed_as_params(params: Iterable[Tensor]) -> Iterator[bool]:
    """Gradients redistributed to the placements of their params, for as long as they are read; whether there are any.

    Autograd may leave a gradient as a sum that is yet to be made: that of a norm's weight under sequence parallelism.
    torch's operations make it where they meet it.
    """
    moved: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for p in params:
                grad, param = cast(Any, p.grad), cast(Any, p)
                if not (is_sharded(p) and is_sharded(grad)) or grad.device_mesh != param.device_mesh:
                    continue
                if grad.placements != param.placements and not any(place.is_partial() for place in param.placements):
                    moved.append((p, grad))
                    p.grad = grad.redistribute(placements=param.placements)
        yield bool(moved)
    finally:
        for p, grad in moved:
            p.grad = grad


def open_state(state: Mapping[str, Any], param: Tensor, factors: Collection[str] = ()) -> tuple[dict[str, Any], Tensor]:
    """A param's state and the param as this process has them: itself, or of DTensors copies of both with local ones.

    `factors` are states of which every process has the whole.
    """
    if not is_sharded(param):
        return cast(dict[str, Any], state), param
    whole = cast(Any, param)
    here = {}
    # Outside of autograd it is the local tensor itself.
    with torch.no_grad():
        for name, value in state.items():
            if is_sharded(value):
                wanted = _everywhere(param) if name in factors else whole.placements
                same = tuple(value.placements) == tuple(wanted)
                here[name] = (value if same else value.redistribute(whole.device_mesh, wanted)).to_local()
            elif isinstance(value, Tensor) and value.dim() and value.shape == param.shape and value.dtype not in _CODES:
                raise ValueError(
                    f"the state {name!r} of a param that is a DTensor is a whole tensor; distribute it as the param "
                    "is, as torch.distributed.checkpoint does"
                )
            else:
                here[name] = value
        return here, whole.to_local()


def close_state(
    here: dict[str, Any], state: Mapping[str, Any], param: Tensor, factors: Collection[str] = ()
) -> dict[str, Any]:
    """The counterpart of `open_state`, after changes: DTensors of the param's spec, but for codes and their scales.

    And factors, which are replicated.
    """
    if not is_sharded(param):
        return here
    whole = cast(Any, param)

    def close(name: str, value: Any) -> Any:
        before: Any = state.get(name)
        if not isinstance(value, Tensor) or value is before or value.dtype in _CODES:
            return value
        wanted = _everywhere(param) if name in factors else whole.placements
        if is_sharded(before) and tuple(before.placements) == tuple(wanted) and before.to_local() is value:
            return before
        if name in factors:
            return replicated_like(param, value)
        if value.shape != shape:
            return value
        return type(whole).from_local(
            value, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )

    with torch.no_grad():
        shape = whole.to_local().shape
        return {name: close(name, value) for name, value in here.items()}


def have_gathered_anew(params: Iterable[Tensor]) -> None:
    """Have fully_shard gather params once more before the model's next forward pass, since they have been written.

    What it gathered for a forward pass it keeps until the backward pass in the root, and wherever
    `reshard_after_forward` is false. Without a backward pass, as in validation, that is what the next forward pass
    computes with. Nothing is sent here.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not any(is_sharded(p) for p in params):
        return
    # Of a param nobody can ask for its module. torch has here those that it keeps something for.
    for module in list(sys.modules["torch.distributed._composable_state"]._module_state_mapping):
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def together(a: Tensor, b: Tensor, norm_type: float) -> Tensor:
    """Two power sums as one, or the larger of two largest values, or NaN if one of them is."""
    return torch.maximum(a, b) if norm_type == math.inf else a + b


Divided = tuple[bool, ...] | None


def _ways(families: Iterable[tuple[Any, Divided]]) -> Iterator[tuple[Any, list[int], list[int]]]:
    """Of each mesh the dimensions over which shares are added up, and the places of those that count in this process.

    A process counts what dimensions of the mesh replicate only if it is the first in them, as far as the sum goes over
    these dimensions at all: where all is replicated, every process has it already.
    """
    meshes: dict[int, tuple[Any, list[tuple[int, Divided]]]] = {}
    for place, (mesh, divided) in enumerate(families):
        meshes.setdefault(id(mesh), (mesh, []))[1].append((place, divided))
    for mesh, members in meshes.values():
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            continue
        dims = [d for d in range(mesh.ndim) if mesh.size(d) > 1 and any(its and its[d] for _, its in members)]
        counted = [place for place, its in members if its is None or all(its[d] or coordinate[d] == 0 for d in dims)]
        yield mesh, dims, counted


def reduced(shares: Iterable[tuple[Any, Divided, Tensor]], norm_type: float) -> Iterator[Tensor]:
    """For each mesh the sum of its shares over all processes, as `Grads.measure_shards` has them of this one.

    `None` in the place of the dimensions that divide: a share that counts in every process.
    """
    listed = list(shares)
    for mesh, dims, counted in _ways((mesh, divided) for mesh, divided, _ in listed):
        total = torch.zeros_like(next(part for its, _, part in listed if its is mesh))
        for place in counted:
            total = together(total, listed[place][2].to(total.device), norm_type)
        for d in dims:
            total = _all_reduced(total.to(mesh.device_type), mesh.get_group(d), norm_type).to(total.device)
        yield total


def adds_up_norms(families: Sequence[tuple[Any, tuple[bool, ...]]]) -> Callable[[Sequence[float], bool], float]:
    """What makes one number of those that processes have on the CPU: of ordinary params, then of each family.

    Beside its numbers a process says whether it refuses its step. Then the others raise RuntimeError.
    """
    ways = list(_ways(families))

    def add_up(parts: Sequence[float], refuses: bool) -> float:
        total, refused = parts[0], False
        for mesh, dims, counted in ways:
            its = 0.0
            for place in counted:
                its += parts[1 + place]
            if dims:
                told = torch.tensor((its, refuses), dtype=torch.float64, device=mesh.device_type)
                for d in dims:
                    torch.distributed.all_reduce(told, group=mesh.get_group(d))
                its, refusals = told.tolist()
                refused = refused or refusals != 0
            total += its
        if refused and not refuses:
            raise RuntimeError(ANOTHER_REFUSES)
        return total

    return add_up


def summed(families: Sequence[tuple[Any, tuple[bool, ...], list[int]]], totals: Tensor) -> Tensor:
    """The sums of params, a row for each, over all processes: one all-reduce for each dimension that divides a mesh.

    Families are rows that one mesh divides alike. The last row is no param's; what any process has there, all have.
    """
    shares: list[tuple[Any, Divided, Tensor]] = []
    for mesh, divided, rows in families:
        part = torch.zeros_like(totals)
        part[rows] = totals[rows]
        shares.append((mesh, divided, part))
    told = torch.zeros_like(totals)
    told[-1] = totals[-1]
    shares += [(mesh, None, told) for mesh in {id(mesh): mesh for mesh, _, _ in families}.values()]
    made = torch.zeros_like(totals)
    with torch.no_grad():
        for part in reduced(shares, 1.0):
            made += part
        if made.is_cuda:
            # Whoever called reads whether a process refuses, and other threads need not wait for that.
            torch.cuda.current_stream(made.device).synchronize()
    return made


def places(param: Any) -> list[Tensor]:
    """Of each dimension of a DTensor which places of it this process has, in their order. Nothing is sent."""
    from torch.distributed.tensor import Replicate

    mesh, found = param.device_mesh, []
    with torch.no_grad():
        for dim, size in enumerate(param.shape):
            along = [p if not p.is_replicate() and p.dim == dim else Replicate() for p in param.placements]
            shape = [size if d == dim else 1 for d in range(param.dim())]
            every = torch.arange(size, device=mesh.device_type).view(shape)
            found.append(divided(every, mesh, along).flatten().cpu())
    return found


def divided(whole: Tensor, mesh: Any, placements: Sequence[Any]) -> Tensor:
    """What this process has of a tensor that is placed so and that every process has. Nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    if "src_data_rank" in inspect.signature(distribute_tensor).parameters:
        placed: Any = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        return cast(Tensor, placed.to_local())
    # That of torch 2.6 sends what the first process has, so that all would have to ask.
    for dim, (placement, place) in enumerate(zip(placements, mesh.get_coordinate(), strict=True)):
        if not placement.is_replicate():
            parts, _ = placement._split_tensor(whole, mesh.size(dim), with_padding=False, contiguous=False)
            whole = parts[place]
    return whole


def replicated_like(param: Any, tensor: Tensor) -> Tensor:
    """A DTensor of the param's mesh, of which every process has this tensor."""
    kind: Any = type(param.data)
    placed: Tensor = kind.from_local(tensor, param.device_mesh, _everywhere(param), run_check=False)
    return placed


def _everywhere(param: Any) -> list[Any]:
    from torch.distributed.tensor import Replicate

    return [Replicate()] * param.device_mesh.ndim


def _all_reduced(total: Tensor, group: Any, norm_type: float) -> Tensor:
    distributed = torch.distributed
    if norm_type != math.inf:
        distributed.all_reduce(total, group=group)
        return total
    # A backend may let a number win over NaN.
    both = torch.stack([total.nan_to_num(math.inf, math.inf), total.isnan().double()])
    distributed.all_reduce(both, op=distributed.ReduceOp.MAX, group=group)
    return torch.where(both[1] > 0, math.nan, both[0])


def replicated(norm: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The norm of params as torch's function returns it: a DTensor, if all of them are DTensors of one mesh."""
    mesh = getattr(params[0], "device_mesh", None)
    if any(getattr(p, "device_mesh", None) != mesh for p in params):
        return norm
    from torch.distributed.tensor import Replicate

    kind: Any = type(params[0])
    placed: Tensor = kind.from_local(norm, mesh, [Replicate()] * cast(Any, mesh).ndim, run_check=False)
    return placed
