"""Params that share memory: each steps from where those before it in the list have left the elements, as in a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Case, named
from support import EMULATED
from torch import Tensor
from torch.nn import Parameter

import fusedopt

SIDE = 640  # enough elements for a second thread to take a share
VIEWS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "the same": lambda base: [base, base.view(-1)],
    "a part": lambda base: [base.view(-1)[: SIDE * SIDE // 2], base.view(-1)[SIDE * SIDE // 3 :]],
    "in a chain": lambda base: [base.view(-1)[1000 * i : 1000 * i + 1500] for i in range(5)],
    "columns, one of them twice": lambda base: [base[:, :300], base[:, 300:500], base[:, 499:640]],
    "some of the elements between": lambda base: [base.view(-1)[::2], base.view(-1)[1::2], base.view(-1)[::3]],
    "another order": lambda base: [base, base.t()],
}
APART: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "halves": lambda base: [base[:320], base[320:]],
    "columns": lambda base: [base[:, :300], base[:, 300:500], base[:, 500:]],
    "single columns": lambda base: [base[:, i] for i in range(4)],
    "the elements between": lambda base: [base.view(-1)[::2], base.view(-1)[1::2]],
    "nothing": lambda base: [base[:0], base[:0], base],
}


def train(make: Callable[[list[Parameter]], torch.optim.Optimizer], views: list[Tensor], steps: int = 4) -> None:
    params = [Parameter(view) for view in views]
    optimizer = make(params)
    for step in range(steps):
        for i, param in enumerate(params):
            generator = torch.Generator().manual_seed(100 * step + i)
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("case", [named("sgd-momentum"), named("adamw")], ids=str)
@pytest.mark.parametrize("views", [*VIEWS.values(), *APART.values()], ids=[*VIEWS, *APART])
def test_it_is_torchs_loop(case: Case, views: Callable[[Tensor], list[Tensor]]) -> None:
    start = torch.randn(SIDE, SIDE)
    ours, theirs = start.clone(), start.clone()
    train(case.ours, views(ours))
    train(case.torchs, views(theirs))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(EMULATED, reason="a device's plan does not say it")
@pytest.mark.parametrize(
    ("views", "apart"), [*((v, False) for v in VIEWS.values()), *((v, True) for v in APART.values())]
)
def test_views_that_have_no_element_in_common_step_at_once(
    views: Callable[[Tensor], list[Tensor]], apart: bool
) -> None:
    """Seen by what a step that clips does, which looks at gradients once if one pass takes all."""
    params = [Parameter(view) for view in views(torch.ones(SIDE, SIDE))]
    optimizer = fusedopt.AdamW(params, max_grad_norm=1.0)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer._planned().looks_once == apart


def test_memory_that_comes_to_be_shared() -> None:
    """After steps in which it was not, and the other way round."""

    def run(optimizer_of: Callable[[list[Parameter]], torch.optim.Optimizer]) -> list[Tensor]:
        params = [Parameter(torch.full((SIDE, SIDE), value)) for value in (1.0, 2.0)]
        optimizer = optimizer_of(params)
        seen = []
        for step in range(9):
            if step == 3:
                params[1].data = params[0].data
            if step == 6:
                params[1].data = params[1].data.clone()
            for i, param in enumerate(params):
                param.grad = torch.full_like(param, 0.1 * (step + i + 1))
            optimizer.step()
            seen.append(torch.stack([p.detach().clone() for p in params]))
        return seen

    for ours, theirs in zip(run(fusedopt.AdamW), run(lambda p: torch.optim.AdamW(p, foreach=False)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_rule_that_takes_all_params_at_once_refuses_them() -> None:
    base = torch.ones(8)
    params = [Parameter(base), Parameter(base)]
    optimizer = fusedopt.Prodigy(params)
    for param in params:
        param.grad = torch.ones(8)
    with pytest.raises(
        RuntimeError, match=r"param 1 of group 0: .* shares memory with another; give it memory of its own"
    ):
        optimizer.step()
    assert base.tolist() == [1.0] * 8


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_lbfgs_moves_shared_elements_once_for_each_param(line_search_fn: str | None) -> None:
    def run(cls: type[torch.optim.LBFGS]) -> Tensor:
        param = Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64))
        part = Parameter(param.detach()[:6].view(3, 2))
        optimizer = cls([param, part], lr=0.1, line_search_fn=line_search_fn)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (param[1:] - param[:-1] ** 2).square().sum() + (part - 1).square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return param.detach()

    torch.testing.assert_close(run(fusedopt.LBFGS), run(torch.optim.LBFGS))


@pytest.mark.parametrize("name", ["AdamW", "SGD", "LAMB", "Adafactor", "Muon"])
@pytest.mark.parametrize("lies", ["one element on", "in another order", "every other element"])
def test_a_gradient_that_lies_across_its_param_is_refused(name: str, lies: str) -> None:
    flat = torch.ones(129 * 128)
    value, grad = {
        "one element on": (flat[128:].view(128, 128), flat[127:-1].view(128, 128)),
        "in another order": (flat[128:].view(128, 128), flat[128:].view(128, 128).t()),
        "every other element": (flat[: 64 * 128].view(64, 128), flat[: 2 * 64 * 128 : 2].view(64, 128)),
    }[lies]
    param = Parameter(value)
    param.grad = grad
    optimizer = getattr(fusedopt, name)([param], lr=0.1)
    with pytest.raises(RuntimeError, match=r"its gradient shares memory with the param.*clone\(\) the gradient"):
        optimizer.step()
    assert flat.eq(1).all()
    assert not optimizer.state
    # What the engine has found before is looked at again.
    param.grad = torch.ones_like(param)
    optimizer.step()
    param.grad = grad
    before = flat.clone()
    with pytest.raises(RuntimeError, match="its gradient shares memory"):
        optimizer.step()
    assert flat.equal(before)


def test_a_gradient_may_be_its_param_or_lie_between_its_elements() -> None:
    flat = torch.linspace(-1, 1, 4096)
    for value, grad in ((flat[:2048], flat[:2048]), (flat[::2], flat[1::2]), (flat[:2048], flat[2048:])):
        ours, apart = Parameter(value.clone()), grad.clone()
        theirs = Parameter(value)
        ours.grad, theirs.grad = apart, grad
        for param in (ours, theirs):
            fusedopt.AdamW([param], lr=0.1).step()
        assert ours.equal(theirs)
