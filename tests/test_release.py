"""Params stepped inside the backward pass end where the usual loop takes them, and their gradients are freed there."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from cases import APART, ONE_PER_APART, Case, named
from options import OPTIONS, Options
from support import assert_identical, params_of, save_and_load, snapshot, versions
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.utils.checkpoint import checkpoint

import fusedopt

Make = Callable[[Iterable[Any]], Optimizer]


def network(dtype: torch.dtype = torch.float32, layers: int = 3, width: int = 9) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [module for _ in range(layers - 1) for module in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*blocks, nn.Linear(width, width)).to(dtype)


def batch(i: int, dtype: torch.dtype = torch.float32, width: int = 9) -> Tensor:
    return torch.randn(7, width, generator=torch.Generator().manual_seed(i)).to(dtype)


def backward(model: nn.Module, i: int) -> None:
    (model(batch(i, next(model.parameters()).dtype)) - 0.5).square().sum().backward()


def loop(model: nn.Module, optimizer: Any, steps: int = 5, first: int = 0, schedule: Any = None) -> None:
    """The usual training loop, which knows nothing of any release."""
    for i in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, i)
        optimizer.step()
        if schedule is not None:
            schedule.step()


def grads_of(model: nn.Module) -> list[Tensor | None]:
    return [param.grad for param in model.parameters()]


def assert_equal_ends(ours: Optimizer, usual: Optimizer) -> None:
    """Equal bits in params and states; states fill in the order of the backward pass."""
    assert len(ours.state) == len(usual.state)
    for p, q in zip(params_of(ours), params_of(usual), strict=True):
        assert_identical(p, q)
        assert_identical(dict(ours.state.get(p, {})), dict(usual.state.get(q, {})))


def both(make: Make, train: Callable[[nn.Module, Any], None] = loop, dtype: torch.dtype = torch.float32) -> None:
    """One training by the usual loop, and the same with gradients released."""
    usual, released = network(dtype), network(dtype)
    start = copy.deepcopy(usual.state_dict())
    optimizers = make(usual.parameters()), make(released.parameters())
    train(usual, optimizers[0])
    with fusedopt.step_in_backward(released, optimizers[1]):
        train(released, optimizers[1])
        assert grads_of(released) == [None] * len(start)
    assert_equal_ends(optimizers[1], optimizers[0])
    if not isinstance(optimizers[1], fusedopt.RAdamScheduleFree):  # whose first steps are silent
        assert all(not torch.equal(value, start[name]) for name, value in released.state_dict().items())


@pytest.mark.parametrize("case", APART, ids=str)
def test_same_bits_as_the_usual_loop(case: Case) -> None:
    both(case.ours)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ONE_PER_APART, ids=str)
def test_same_bits_in_other_dtypes(case: Case, dtype: torch.dtype) -> None:
    both(case.ours, dtype=dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_bits_with_every_option(options: Options) -> None:
    case = named("adamw")
    both(lambda params: case.ours(params, **options.of(case)), dtype=options.dtypes[0])


def test_same_bits_for_adafactor() -> None:
    both(lambda params: fusedopt.Adafactor(params, lr=0.05))


@pytest.mark.skipif(not hasattr(fusedopt, "Muon"), reason="needs torch 2.9")
def test_muon_agrees_up_to_its_batched_products() -> None:
    ends = []
    for release in (False, True):
        model = network()
        optimizer = fusedopt.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.05)
        if release:
            fusedopt.step_in_backward(model, optimizer)
        loop(model, optimizer)
        ends.append(params_of(optimizer))
    for p, q, start in zip(
        *ends, params_of(fusedopt.Muon([p for p in network().parameters() if p.ndim == 2])), strict=True
    ):
        assert not torch.equal(p, start)
        # The products are in bfloat16.
        torch.testing.assert_close(p, q, rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize("name", ["SparseAdam", "SGD", "Adagrad"])
def test_sparse_gradients(name: str) -> None:
    ends = []
    for release in (False, True):
        torch.manual_seed(0)
        model = nn.Embedding(20, 4, sparse=True)
        optimizer = getattr(fusedopt, name)(model.parameters(), lr=0.1)
        if release:
            fusedopt.step_in_backward(model, optimizer)
        for i in range(4):
            optimizer.zero_grad()
            model(torch.tensor([i, 3, i])).sum().backward()
            assert (model.weight.grad is None) == release
            optimizer.step()
        ends.append(optimizer)
    assert_equal_ends(*ends)


def test_sweeps_leave_other_params_alone() -> None:
    """An optimizer that steps all params at once, of which one is outside of the model."""
    ends = []
    for release in (False, True):
        torch.manual_seed(0)
        model, beside = nn.Embedding(20, 4, sparse=True), nn.Embedding(20, 4, sparse=True)
        optimizer = fusedopt.SparseAdam([*beside.parameters(), *model.parameters()], lr=0.1)
        if release:
            fusedopt.step_in_backward(model, optimizer)
        for i in range(3):
            optimizer.zero_grad()
            rows = torch.tensor([i, 3])
            beside(rows).sum().backward()
            model(rows).sum().backward()
            optimizer.step()
        ends.append(optimizer)
    assert_equal_ends(ends[1], ends[0])
    assert ends[1].state[params_of(ends[1])[0]]["step"] == 3


class Memory:
    """How many bytes the gradients of a model take, at most: each is followed from its accumulation to its end."""

    def __init__(self, model: nn.Module) -> None:
        self.now = self.peak = self.seen = 0
        for param in model.parameters():
            param.register_post_accumulate_grad_hook(self.begin)

    def begin(self, param: Tensor) -> None:
        assert param.grad is not None
        weakref.finalize(param.grad, self.end, param.grad.nbytes)
        self.seen += 1
        self.now += param.grad.nbytes
        self.peak = max(self.peak, self.now)

    def end(self, nbytes: int) -> None:
        self.now -= nbytes


def test_peak_of_gradient_memory() -> None:
    peaks = []
    for release in (False, True):
        model = network(layers=24, width=32)
        memory = Memory(model)  # its hooks come first, and so see what is released
        optimizer = fusedopt.AdamW(model.parameters())
        if release:
            fusedopt.step_in_backward(model, optimizer)
        for i in range(3):
            optimizer.zero_grad()
            model(batch(i, width=32)).sum().backward()
            optimizer.step()
        assert memory.seen == 3 * len(list(model.parameters()))
        peaks.append(memory.peak)
        assert memory.now == (0 if release else peaks[0])
    assert peaks[0] == sum(param.nbytes for param in model.parameters())
    assert 0 < peaks[1] < peaks[0] / 4


@pytest.mark.parametrize("case", ONE_PER_APART, ids=str)
def test_accumulation_steps_on_the_sum(case: Case) -> None:
    def accumulate(model: nn.Module, optimizer: Any) -> None:
        for i in range(0, 9, 3):
            optimizer.zero_grad()
            for k in range(3):
                backward(model, i + k)
            optimizer.step()

    usual, released = network(), network()
    optimizers = case.ours(usual.parameters()), case.ours(released.parameters())
    accumulate(usual, optimizers[0])
    handle = fusedopt.step_in_backward(released, optimizers[1])
    for i in range(0, 9, 3):
        with handle.accumulate():
            before = snapshot(optimizers[1])
            backward(released, i)
            with handle.accumulate():
                backward(released, i + 1)
            assert_identical(snapshot(optimizers[1]), before)
            assert None not in grads_of(released)
        backward(released, i + 2)
        assert grads_of(released) == [None] * 6
    assert_equal_ends(optimizers[1], optimizers[0])


def test_accumulation_ends_with_an_error_inside() -> None:
    model = network()
    handle = fusedopt.step_in_backward(model, optimizer := fusedopt.SGD(model.parameters(), lr=0.1))
    with pytest.raises(KeyError), handle.accumulate():
        raise KeyError
    backward(model, 0)
    assert grads_of(model) == [None] * 6
    del optimizer


def test_step_and_zero_grad_find_nothing_to_do() -> None:
    model = network()
    optimizer = fusedopt.AdamW(model.parameters())
    fusedopt.step_in_backward(model, optimizer)
    backward(model, 0)
    before, counted = snapshot(optimizer), versions(optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert_identical(snapshot(optimizer), before)
    assert versions(optimizer) == counted
    assert not optimizer.step_skipped


def test_steps_tell_autograd_of_their_writes() -> None:
    """A graph that was made with the old values must not go backward through the new ones."""
    model = network()
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    fusedopt.step_in_backward(model, optimizer)
    loss = model(batch(0)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("case", ONE_PER_APART, ids=str)
def test_groups_schedules_and_checkpoints(case: Case) -> None:
    def groups(params: Iterable[Any]) -> list[dict[str, Any]]:
        first, *rest = params
        return [{"params": [first], "lr": 0.01}, {"params": rest}]

    def train(model: nn.Module, optimizer: Any) -> None:
        schedule = lr_scheduler.OneCycleLR(optimizer, [0.02, 0.05], total_steps=8, cycle_momentum=False)
        loop(model, optimizer, 3, schedule=schedule)
        file = save_and_load(optimizer.state_dict())
        loop(model, optimizer, 1, 3)
        optimizer.load_state_dict(file)  # which replaces the groups and the states
        loop(model, optimizer, 2, 4, schedule)
        optimizer.param_groups.reverse()
        optimizer.param_groups[0]["lr"] = 0.03
        loop(model, optimizer, 2, 6)

    both(lambda params: case.ours(groups(params)), train)


def test_a_param_without_a_hook_is_left_to_step() -> None:
    """Those outside of the model, those that come later, and those that were frozen at first."""

    def build() -> tuple[nn.Sequential, nn.Linear, nn.Linear, Any]:
        model, beside, later = network(), nn.Linear(9, 1), nn.Linear(9, 1)
        for module in (beside, later):
            nn.init.ones_(module.weight)
            nn.init.ones_(module.bias)
        model[0].bias.requires_grad_(False)
        return model, beside, later, fusedopt.AdamW([*model.parameters(), *beside.parameters()], lr=0.1)

    ends = []
    for release in (False, True):
        model, beside, later, optimizer = build()
        if release:
            fusedopt.step_in_backward(model, optimizer)
        model[0].bias.requires_grad_(True)
        for i in range(4):
            if i == 2:
                optimizer.add_param_group({"params": later.parameters(), "lr": 0.2})
            optimizer.zero_grad()
            out = model(batch(i))
            (beside(out) + later(out)).square().sum().backward()
            if release:
                assert model[0].weight.grad is None
                assert None not in (model[0].bias.grad, beside.weight.grad, later.weight.grad)
            optimizer.step()
        ends.append(optimizer)
    assert_equal_ends(ends[1], ends[0])
    assert not torch.equal(params_of(ends[1])[-1], torch.ones(1))


def test_a_param_without_an_optimizer_keeps_its_gradient() -> None:
    model = network()
    optimizer = fusedopt.SGD(model[0].parameters(), lr=0.1)
    fusedopt.step_in_backward(model, optimizer)
    optimizer.param_groups[0]["params"].pop()  # the bias
    before = model[0].bias.detach().clone()
    backward(model, 0)
    assert [grad is None for grad in grads_of(model)] == [True, False, False, False, False, False]
    assert torch.equal(model[0].bias, before)


def test_only_accumulated_gradients_step() -> None:
    model = network()
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1)
    fusedopt.step_in_backward(model, optimizer)
    before = snapshot(optimizer)
    grads = torch.autograd.grad(model(batch(0)).sum(), list(model.parameters()))
    assert all(grad is not None for grad in grads)
    assert_identical(snapshot(optimizer), before)


class Tied(nn.Module):
    """Two uses of one weight, the second one checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(9, 9), nn.Linear(9, 9)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda y: self.outer(y).tanh(), self.inner(x), use_reentrant=False)


def test_shared_params_and_recomputed_activations() -> None:
    ends = []
    for release in (False, True):
        model = Tied()
        optimizer = fusedopt.AdamW(model.parameters(), lr=0.1)
        if release:
            fusedopt.step_in_backward(model, optimizer)
        loop(model, optimizer)
        ends.append(optimizer)
    assert len(params_of(ends[1])) == 3
    assert ends[1].state[params_of(ends[1])[0]]["step"] == 5
    assert_equal_ends(ends[1], ends[0])


def test_several_optimizers_release_their_own() -> None:
    ends = []
    for release in (False, True):
        model = network()
        optimizers = [fusedopt.AdamW(model[0].parameters()), fusedopt.SGD(model[2].parameters(), lr=0.1)]
        if release:
            for optimizer in optimizers:
                fusedopt.step_in_backward(model, optimizer)
        for i in range(3):
            backward(model, i)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            model[4].zero_grad()
        ends.append(optimizers)
    for ours, usual in zip(ends[1], ends[0], strict=True):
        assert_equal_ends(ours, usual)


def test_a_param_is_released_once() -> None:
    model = network()
    first = fusedopt.AdamW(model[0].parameters())
    handle = fusedopt.step_in_backward(model, first)
    for optimizer in (first, fusedopt.SGD(model.parameters(), lr=0.1)):
        with pytest.raises(
            ValueError, match=r"param 0 of group 0 is stepped in backward already, by AdamW; remove\(\)"
        ):
            fusedopt.step_in_backward(model, optimizer)
    handle.remove()
    fusedopt.step_in_backward(model, first).remove()
    fusedopt.step_in_backward(model, second := fusedopt.SGD(model.parameters(), lr=0.1))
    del second
    third = fusedopt.SGD(model.parameters(), lr=0.1)  # the hooks of one that was freed are in nobody's way
    fusedopt.step_in_backward(model, third)
    backward(model, 0)
    assert grads_of(model) == [None] * 6
