"""LBFGS takes torch's iterates, stops where torch stops and leaves torch's state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import assert_identical, save_and_load
from torch import Tensor
from torch.nn import Parameter

import fusedopt

FIXED: dict[str, Any] = {"lr": 0.1}
WOLFE: dict[str, Any] = {"line_search_fn": "strong_wolfe"}
KINDS = [pytest.param(FIXED, id="fixed"), pytest.param(WOLFE, id="strong_wolfe")]
Closure = Callable[[], Tensor]


class LeastSquares:
    """A small network on a smooth target: (4, 16), (16,), (16, 16), (16,), (1, 16), (1,) params."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(3)

        def randn(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        shapes = [(4, 16), (16,), (16, 16), (16,), (16, 1), (1,)]
        self.params = [Parameter((randn(*shape) / 3).to(dtype)) for shape in shapes]
        inputs = randn(96, 4)
        self.inputs, self.target = inputs.to(dtype), torch.sin(inputs.sum(1, keepdim=True)).to(dtype)

    def loss(self) -> Tensor:
        hidden = self.inputs
        for weight, bias in (self.params[:2], self.params[2:4]):
            hidden = torch.tanh(hidden @ weight + bias)
        return ((hidden @ self.params[4] + self.params[5] - self.target) ** 2).mean()


class Rosenbrock:
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.params = [Parameter(torch.tensor(x, dtype=dtype)) for x in (-1.2, 1.0)]

    def loss(self) -> Tensor:
        x, y = self.params
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def closure_of(problem: Any, optimizer: torch.optim.Optimizer) -> Closure:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = problem.loss()
        loss.backward()
        return loss

    return closure


def flat(params: list[Any]) -> Tensor:
    return torch.cat([torch.view_as_real(p).flatten() if p.is_complex() else p.flatten() for p in params]).detach()


def assert_near(ours: list[Any], torchs: list[Any], rtol: float = 1e-9) -> None:
    expected = flat(torchs)
    assert (flat(ours) - expected).norm() <= rtol * expected.norm()


def assert_same_course(ours: Any, torchs: Any) -> None:
    """Both have iterated and evaluated as often, and keep as much."""
    mine, theirs = (optimizer.state[optimizer._params[0]] for optimizer in (ours, torchs))
    assert set(mine) == set(theirs)
    for key, value in theirs.items():
        if key == "t":  # a tensor or a float in torch's, depending on where it comes from
            assert isinstance(mine[key], (float, int))
        elif isinstance(value, Tensor):
            found = mine[key]
            assert (found.shape, found.dtype, found.device) == (value.shape, value.dtype, value.device), key
        elif isinstance(value, list):
            assert [type(x) for x in mine[key]] == [type(x) for x in value], key
        elif key in ("func_evals", "n_iter"):
            assert mine[key] == value, key


def both(problem: type[Any], steps: int, dtype: torch.dtype = torch.float64, **arguments: Any) -> tuple[Any, Any]:
    """Our optimizer and torch's after so many steps."""
    made = []
    for cls in (fusedopt.LBFGS, torch.optim.LBFGS):
        one = problem(dtype)
        optimizer = cls(one.params, **arguments)
        for _ in range(steps):
            optimizer.step(closure_of(one, optimizer))
        made.append(optimizer)
    return made[0], made[1]


@pytest.mark.parametrize("arguments", KINDS)
def test_a_network_trains_as_with_torch(arguments: dict[str, Any]) -> None:
    for steps in (1, 2, 5, 20):
        ours, torchs = both(LeastSquares, steps, max_iter=1, max_eval=10, **arguments)
        assert_near(ours._params, torchs._params)
        assert_same_course(ours, torchs)
        for key in ("d", "prev_flat_grad"):
            assert_near([ours.state[ours._params[0]][key]], [torchs.state[torchs._params[0]][key]])
    ours, torchs = both(LeastSquares, 1, max_iter=20, **arguments)
    assert_near(ours._params, torchs._params)
    assert_same_course(ours, torchs)


@pytest.mark.parametrize("arguments", [pytest.param({"lr": 1e-3}, id="fixed"), KINDS[1]])
def test_rosenbrock(arguments: dict[str, Any]) -> None:
    for max_iter in range(1, 21):
        ours, torchs = both(Rosenbrock, 1, max_iter=max_iter, **arguments)
        assert_near(ours._params, torchs._params)
        assert_same_course(ours, torchs)


def test_rosenbrock_is_solved() -> None:
    ours, _ = both(Rosenbrock, 1, max_iter=60, **WOLFE)
    # It ends when the loss changes by less than 1e-9, the square of some 3e-5.
    torch.testing.assert_close(flat(ours._params), torch.ones(2, dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_search_that_returns_to_an_earlier_point_has_its_gradient() -> None:
    """At a kink no point meets the Wolfe conditions: the bracket shrinks until it is nothing, and its lower end, which
    need not be the last point tried, is taken."""

    class Kinks(Rosenbrock):
        def loss(self) -> Tensor:
            x, y = self.params
            return (1 - x).abs() + 10 * (y - x**2).abs()

    for max_iter in range(2, 7):
        ours, torchs = both(Kinks, 1, max_iter=max_iter, max_eval=1000, **WOLFE)
        assert_near(ours._params, torchs._params)
        assert_same_course(ours, torchs)


@pytest.mark.parametrize("arguments", KINDS)
def test_float32_strays_no_further_from_float64_than_torch_does(arguments: dict[str, Any]) -> None:
    """Rounding errors grow from iteration to iteration, in torch's as in ours, so they are measured against float64's
    course; four times torch's is what two runs of equal quality can differ by."""
    for steps in (1, 2, 5, 10):
        exact = flat(both(LeastSquares, steps, max_iter=1, max_eval=10, **arguments)[1]._params)
        ours, torchs = both(LeastSquares, steps, torch.float32, max_iter=1, max_eval=10, **arguments)
        errors = [(flat(optimizer._params).double() - exact).norm() / exact.norm() for optimizer in (ours, torchs)]
        assert errors[0] <= 4 * errors[1] + 2**-23
        assert_same_course(ours, torchs)


@pytest.mark.parametrize("arguments", KINDS)
def test_a_full_history_loses_its_oldest_pair(arguments: dict[str, Any]) -> None:
    ours, torchs = both(LeastSquares, 30, max_iter=1, max_eval=4, history_size=3, **arguments)
    assert_near(ours._params, torchs._params)
    assert_same_course(ours, torchs)
    mine, theirs = ours.state[ours._params[0]], torchs.state[torchs._params[0]]
    for key in ("old_dirs", "old_stps"):
        assert len(mine[key]) == 3
        for a, b in zip(mine[key], theirs[key], strict=True):
            assert_near([a], [b], 1e-7)
    for key in ("ro", "al"):
        torch.testing.assert_close(torch.stack(mine[key]), torch.stack(theirs[key]), rtol=1e-7, atol=0)
    torch.testing.assert_close(mine["H_diag"], theirs["H_diag"], rtol=1e-7, atol=0)


def test_what_somebody_holds_of_the_history_stays_as_it_is() -> None:
    problem = LeastSquares()
    optimizer = fusedopt.LBFGS(problem.params, max_iter=1, history_size=2, **FIXED)
    closure = closure_of(problem, optimizer)
    for _ in range(4):
        optimizer.step(closure)
    state = optimizer.state[problem.params[0]]
    held = [*state["old_dirs"], *state["old_stps"]]
    copies = [vector.clone() for vector in held]
    for _ in range(4):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_iter": 7},
        {"max_iter": 1},
        {"max_eval": 5},
        {"max_eval": 1},
        {"tolerance_grad": 3e-2},
        {"tolerance_grad": 1e9},
        {"tolerance_change": 1e-3},
        {"tolerance_change": 1e3},
        {"max_iter": 40, "max_eval": 1000},
    ],
    ids=str,
)
@pytest.mark.parametrize("arguments", KINDS)
def test_a_step_ends_where_torchs_does(arguments: dict[str, Any], limits: dict[str, Any]) -> None:
    ours, torchs = both(LeastSquares, 2, **arguments, **limits)
    assert_same_course(ours, torchs)
    # Forty iterations twice over, each of which makes differences larger.
    assert_near(ours._params, torchs._params, 1e-6 if limits.get("max_iter") == 40 else 1e-9)


# Where only one test of progress is met: on steep slopes a small step changes the loss by much, on flat ones a large
# step by little.
PROGRESS = {
    "gradient": (1.0, {"tolerance_grad": 2e-2, "tolerance_change": 0}),
    "params": (1e6, {"tolerance_grad": 0, "tolerance_change": 1.2e-2}),
    "loss": (1e-3, {"tolerance_grad": 0, "tolerance_change": 2e-6}),
}


@pytest.mark.parametrize(("scale", "tolerances"), PROGRESS.values(), ids=PROGRESS)
@pytest.mark.parametrize("arguments", [KINDS[0], pytest.param({**WOLFE, "lr": 0.3}, id="strong_wolfe")])
def test_each_test_of_progress_ends_a_step(
    arguments: dict[str, Any], scale: float, tolerances: dict[str, float]
) -> None:
    class Scaled(LeastSquares):
        def loss(self) -> Tensor:
            return scale * super().loss()

    ours, torchs = both(Scaled, 1, max_iter=60, max_eval=1000, **arguments, **tolerances)
    assert_same_course(ours, torchs)
    assert ours.state[ours._params[0]]["n_iter"] < 60


def test_a_pair_of_no_curvature_is_not_kept() -> None:
    """On a concave function y.s is negative."""

    class Concave(LeastSquares):
        def loss(self) -> Tensor:
            return -sum((p**2).sum() for p in self.params)

    ours, torchs = both(Concave, 4, max_iter=2, lr=0.01)
    assert ours.state[ours._params[0]]["old_dirs"] == []
    assert ours.state[ours._params[0]]["H_diag"] == 1
    assert_near(ours._params, torchs._params)
    assert_same_course(ours, torchs)


@pytest.mark.parametrize("arguments", KINDS)
@pytest.mark.parametrize("way", ["from torch", "to torch", "ours"])
def test_a_checkpoint_goes_on(arguments: dict[str, Any], way: str) -> None:
    first, second = {
        "from torch": (torch.optim.LBFGS, fusedopt.LBFGS),
        "to torch": (fusedopt.LBFGS, torch.optim.LBFGS),
        "ours": (fusedopt.LBFGS, fusedopt.LBFGS),
    }[way]
    arguments = {"max_iter": 3, "history_size": 4, **arguments}
    problem, resumed = LeastSquares(), LeastSquares()
    optimizer = first(problem.params, **arguments)
    closure = closure_of(problem, optimizer)
    for _ in range(3):
        optimizer.step(closure)
    other = second(resumed.params, **arguments)
    other.load_state_dict(save_and_load(optimizer.state_dict()))
    for p, q in zip(resumed.params, problem.params, strict=True):
        p.data.copy_(q)
    for _ in range(3):
        optimizer.step(closure)
        other.step(closure_of(resumed, other))
    if way == "ours":
        assert_identical(flat(resumed.params), flat(problem.params))
    assert_near(resumed.params, problem.params)
    assert_same_course(optimizer, other)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda optimizer: save_and_load(optimizer, weights_only=False)])
def test_a_copy_goes_on(clone: Callable[[Any], Any]) -> None:
    problem = LeastSquares()
    optimizer = fusedopt.LBFGS(problem.params, max_iter=3, **FIXED)
    optimizer.step(closure_of(problem, optimizer))
    other, twin = clone(optimizer), LeastSquares()
    twin.params = other.param_groups[0]["params"]
    for _ in range(2):
        optimizer.step(closure_of(problem, optimizer))
        other.step(closure_of(twin, other))
    assert_identical(flat(twin.params), flat(problem.params))


def test_a_changed_history_is_read_anew() -> None:
    problem, same = LeastSquares(), LeastSquares()
    optimizers = [cls(one.params, max_iter=4, **FIXED) for cls, one in
                  ((fusedopt.LBFGS, problem), (torch.optim.LBFGS, same))]  # fmt: skip
    for optimizer, one in zip(optimizers, (problem, same), strict=True):
        optimizer.step(closure_of(one, optimizer))
        state = optimizer.state[one.params[0]]
        state["old_stps"][1].mul_(1.5)
        state["ro"][1].div_(1.5)
        optimizer.step(closure_of(one, optimizer))
    assert_near(problem.params, same.params)


def test_replace_takes_over() -> None:
    problem, same = LeastSquares(), LeastSquares()
    torchs = torch.optim.LBFGS(problem.params, max_iter=3, **WOLFE)
    whole = torch.optim.LBFGS(same.params, max_iter=3, **WOLFE)
    torchs.step(closure_of(problem, torchs))
    ours = fusedopt.replace(torchs)
    assert type(ours) is fusedopt.LBFGS
    assert fusedopt.replace(ours) is ours
    ours.step(closure_of(problem, ours))
    for _ in range(2):
        whole.step(closure_of(same, whole))
    assert_near(problem.params, same.params)
