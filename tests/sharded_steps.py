"""Steps of element-wise rules on DTensors: the bits of the run on whole tensors, and no Python for each of them."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER
from ranks import case
from sharded import PLACEMENTS, SHAPES, Pair, mesh_of, numbers, place, whole
from support import assert_identical, params_of, versions
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import Parameter

import fusedopt

ELEMENTWISE = [c for c in CASES if c.elementwise]


@case()
def every_rule_has_the_bits_of_whole_tensors(rank: int) -> None:
    for one in ELEMENTWISE:
        placements = PLACEMENTS if one in ONE_PER_OPTIMIZER else PLACEMENTS[:1]
        for its in placements:
            pair = Pair(one.ours, its)
            pair.step()
            pair.assert_same()


@case(ranks=4)
def uneven_and_empty_shards(rank: int) -> None:
    """Of a Linear(10, 3) the last of four processes has nothing, its gradient is empty, and it counts steps."""
    pair = Pair(lambda ps: fusedopt.AdamW(ps, ema_decay=0.5), shapes=[(3, 10), (3,), (1,)])
    pair.step()
    pair.assert_same()
    weight = params_of(pair.sharded)[0]
    assert weight.to_local().shape == ((1, 10) if rank < 3 else (0, 10))
    assert pair.sharded.state[weight]["step"] == 3


@case(ranks=4)
def meshes_of_two_dimensions(rank: int) -> None:
    mesh = mesh_of(2, 2)
    for placements in [(Shard(0), Shard(1)), (Replicate(), Shard(0)), (Shard(0), Replicate()), (Shard(0), Shard(0))]:
        pair = Pair(
            lambda ps: fusedopt.AdamW(ps, amsgrad=True), placements, shapes=[(10, 3), (5, 4, 2), (1, 1)], mesh=mesh
        )
        pair.step()
        pair.assert_same()


@case()
def ordinary_params_among_them(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.SGD(ps, lr=0.1, momentum=0.9), plain=[0, 2])
    pair.step()
    pair.assert_same()
    # Groups have numbers of their own.
    pair = Pair(lambda ps: fusedopt.AdamW([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.5}]), plain=[3])
    pair.step()
    pair.assert_same()


@case()
def a_process_without_gradients_steps_nothing_and_waits_for_nobody(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.1))
    before = [p.to_local().clone() for p in params_of(pair.sharded)]
    pair.give_grads(0)
    if rank == 1:
        for p in params_of(pair.sharded):
            p.grad = None
    pair.sharded.step()
    for p, start in zip(params_of(pair.sharded), before, strict=True):
        assert torch.equal(p.to_local(), start) == (rank == 1 or start.numel() == 0)
        assert bool(pair.sharded.state.get(p)) == (rank == 0)


@case()
def learning_rates_in_tensors(rank: int) -> None:
    """The rate of whole tensors is a number throughout."""
    for lr in (torch.tensor(0.05), place(torch.tensor(0.05), mesh_of(2), [Replicate()])):
        pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.05))
        pair.sharded.param_groups[0]["lr"] = lr
        pair.step()
        lr.mul_(2)
        pair.whole.param_groups[0]["lr"] = float(torch.tensor(0.05) * 2)
        pair.step(first=3)
        for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
            torch.testing.assert_close(whole(p.detach()), q.detach())


@case()
def version_counters_of_the_whole_and_of_the_part_go_up(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.AdamW(ps, ema_decay=0.5))
    pair.step(1)

    def parts() -> list[int]:
        kept = [value for p in pair.sharded.state for value in (p, *pair.sharded.state[p].values())]
        return [t.to_local()._version for t in kept if isinstance(t, DTensor)]

    pair.give_grads(1)
    before = versions(pair.sharded), parts()
    pair.sharded.step()
    after = versions(pair.sharded), parts()
    grads = len(SHAPES)
    assert sum(a > b for a, b in zip(after[0], before[0], strict=True)) == len(before[0]) - grads
    assert all(a > b for a, b in zip(after[1], before[1], strict=True))
    pair.give_grads(2)
    grads_before = [(p.grad._version, p.grad.to_local()._version) for p in params_of(pair.sharded)]
    pair.sharded.step(zero_grad=True)
    for p, (outer, inner) in zip(params_of(pair.sharded), grads_before, strict=True):
        assert p.grad._version > outer
        assert p.grad.to_local()._version > inner
        assert whole(p.grad).eq(0).all()


@contextmanager
def _calls() -> Any:
    """The names of the Python functions that run within."""
    names: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)

    sys.setprofile(note)
    try:
        yield names
    finally:
        sys.setprofile(None)


@case()
def a_step_calls_as_much_python_as_one_on_local_tensors(rank: int) -> None:
    """No to_local(), no operation that dispatches, nothing for each param."""
    found = {}
    for sharded in (True, False):
        params = Pair(lambda ps: fusedopt.AdamW(ps), shapes=[(8, 4)] * 20).params(True)
        if not sharded:
            params = [Parameter(p.to_local().clone()) for p in params]  # type: ignore[attr-defined]
        optimizer = fusedopt.AdamW(params)
        for i in range(3):
            for p in params:
                p.grad = torch.zeros_like(p)
            with _calls() as names:
                optimizer.step()
            found[sharded, i] = [name for name in names if not name.startswith("_calls")]
    assert found[True, 2] == found[False, 2]
    assert len(found[True, 2]) < 20


@case()
def tensors_that_are_replaced_or_written_between_steps_are_noticed(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.1))
    pair.step(2)
    # As FSDP2 does, when a module is moved or its params are assigned.
    p, q = params_of(pair.sharded)[0], params_of(pair.whole)[0]
    p._local_tensor = p._local_tensor.clone() * 2
    with torch.no_grad():
        q.mul_(2)
    for optimizer, param in ((pair.sharded, p), (pair.whole, q)):
        optimizer.state[param]["exp_avg"].zero_()
        optimizer.state[param]["exp_avg_sq"] = optimizer.state[param]["exp_avg_sq"].clone()
    pair.step(2, first=2)
    pair.assert_same()
    # What this process has of a state, in the same DTensor.
    average = pair.sharded.state[p]["exp_avg"]
    average._local_tensor = average._local_tensor * 0.5
    pair.whole.state[q]["exp_avg"].mul_(0.5)
    pair.step(1, first=7)
    pair.assert_same()
    # Gradients of the same layout under other specs, as autograd makes them.
    for i in range(4, 7):
        pair.give_grads(i)
        for param in params_of(pair.sharded):
            param.grad = DTensor.from_local(
                param.grad.to_local(), pair.mesh, param.placements, shape=param.shape, stride=param.stride()
            )
        pair.sharded.step()
        pair.whole.step()
    pair.assert_same()


@case()
def several_threads_look_at_shards(rank: int) -> None:
    """Of so many that each has some, and of which one is edited after all were found as they were."""
    torch.set_num_threads(4)
    try:
        pair = Pair(lambda ps: fusedopt.AdamW(ps, lr=0.1), shapes=[(8, 4)] * 500)
        pair.step(4)
        for optimizer in (pair.sharded, pair.whole):
            average = optimizer.state[params_of(optimizer)[400]]["exp_avg"]
            optimizer.state[params_of(optimizer)[400]]["exp_avg"] = average * 0.5
        pair.step(2, first=4)
        pair.assert_same()
    finally:
        torch.set_num_threads(1)


@case()
def a_param_listed_again_or_given_up_for_another(rank: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the one that is there twice
        pair = Pair(lambda ps: fusedopt.SGD([*ps, ps[0]], lr=0.1, momentum=0.9), shapes=SHAPES[:2])
    for i in range(3):
        for optimizer, sharded in ((pair.sharded, True), (pair.whole, False)):
            for p, grad in zip(params_of(optimizer), numbers(SHAPES[:2], i), strict=False):
                p.grad = place(grad, pair.mesh, [Shard(0)]) if sharded else grad
            optimizer.step()
    pair.assert_same()
    pair = Pair(lambda ps: fusedopt.SGD(ps, lr=0.1))
    pair.step(2)
    for sharded, optimizer in ((True, pair.sharded), (False, pair.whole)):
        optimizer.param_groups[0]["params"][1] = pair.params(sharded)[1]
    pair.step(2, first=2)
    pair.assert_same()


@case()
def gradients_that_are_sums_yet_to_be_made(rank: int) -> None:
    """Those of a norm under sequence parallelism are Partial when backward ends; they are redistributed, once."""
    from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

    for options in ({}, {"ema_decay": 0.5}):
        torch.manual_seed(3)
        models = [nn.Sequential(nn.LayerNorm(8)) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        parallelize_module(models[0], mesh_of(2), {"0": SequenceParallel()})
        optimizers = [fusedopt.AdamW(model.parameters(), lr=0.1, **options) for model in models]
        for i in range(3):
            (x,) = numbers([(2, 4, 8)], i)
            models[0](x[:, 2 * rank : 2 * rank + 2]).to_local().pow(3).sum().backward()
            models[1](x).pow(3).sum().backward()
            grads = [p.grad for p in models[0].parameters()]
            assert grads[0].placements == (Partial(),)  # type: ignore[union-attr]
            for optimizer in optimizers:
                optimizer.step()
            assert all(p.grad is grad for p, grad in zip(models[0].parameters(), grads, strict=True))
            for optimizer in optimizers:
                optimizer.zero_grad()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(whole(p.detach()), q.detach())


@case()
def gradients_placed_otherwise(rank: int) -> None:
    pair = Pair(lambda ps: fusedopt.AdamW(ps, master_weights="float32"), dtype=torch.bfloat16)
    for i in range(2):
        pair.give_grads(i)
        for p, q in zip(params_of(pair.sharded), params_of(pair.whole), strict=True):
            p.grad = place(q.grad, pair.mesh, [Replicate()])
        pair.sharded.step(zero_grad=True)
        assert all(p.grad.placements == (Replicate(),) and not p.grad.to_local().any() for p in params_of(pair.sharded))
        pair.whole.step()
    pair.assert_same()


@case()
def what_cannot_be_told_apart_is_refused(rank: int) -> None:
    mesh = mesh_of(2)
    (t,) = numbers([(6, 4)], 1)

    def refuse(param: Any, grad: Any, text: str, **state: Any) -> None:
        param.grad = grad
        optimizer = fusedopt.AdamW([param], ema_decay=0.5)
        if state:
            optimizer.step()
            optimizer.state[param].update(state)
        before = whole(param.detach()).clone()
        with pytest.raises(RuntimeError, match=text):
            optimizer.step()
        assert_identical(whole(param.detach()), before)

    def param() -> Any:
        return Parameter(place(t, mesh, [Shard(0)]))

    knows = ". torch's own step, which would take it as it is, knows no state_dtype"
    refuse(Parameter(t.clone()), place(t, mesh, [Shard(0)]), "its gradient is a DTensor and it is none.*" + knows)
    other = DTensor.from_local(t[3 * rank : 3 * rank + 3].clone(), mesh, [Partial()])
    refuse(Parameter(other), other.detach(), "it is a sum that has not been made yet; redistribute.. it" + knows)
    refuse(
        param(), place(t, mesh, [Shard(0)]), "'exp_avg' is no DTensor and the param is one", exp_avg=torch.zeros(6, 4)
    )
    refuse(
        param(),
        place(t, mesh, [Shard(0)]),
        r"'ema' is placed as \(Shard\(dim=1\),\) and itself as \(Shard\(dim=0\),\)",
        ema=place(t, mesh, [Shard(1)]),
    )
    # Of another mesh, if it is only another object, the layout is the same.
    elsewhere = param()
    elsewhere.grad = place(t, torch.distributed.device_mesh.init_device_mesh("cpu", (2,)), [Shard(0)])
    fusedopt.AdamW([elsewhere], ema_decay=0.5).step()
    # torch's own step takes what it takes.
    outcome = fusedopt.SGD([param()], lr=0.1)
    outcome.param_groups[0]["params"][0].grad = place(t, mesh, [Shard(1)])
    outcome.step()
    torch.testing.assert_close(whole(params_of(outcome)[0].detach()), 0.9 * t)
