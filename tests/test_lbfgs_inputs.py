"""What LBFGS may be given: params, gradients and closures of all kinds, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from layouts import OF_ONE_SHAPE, Layout
from support import assert_identical, outcome
from test_lbfgs import FIXED, KINDS, WOLFE, LeastSquares, assert_near, assert_same_course, closure_of, flat
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import _C


class Quadratic:
    """sum w |p - c|^2 over any params, whose gradients are handed out, as `give` makes them."""

    def __init__(self, params: list[Any], give: Callable[[int, Tensor], Tensor | None] = lambda i, g: g) -> None:
        self.params = params
        self.give = give
        generator = torch.Generator().manual_seed(5)
        self.terms = []
        for p in params:
            real = [torch.rand(p.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
            centre = torch.complex(real[0], real[1]) if p.is_complex() else real[0]
            self.terms.append(((real[2] + 0.1).to(p.dtype.to_real()), centre.to(p.dtype)))

    def closure(self) -> float:
        loss = 0.0
        for i, (p, (weight, centre)) in enumerate(zip(self.params, self.terms, strict=True)):
            apart = p.detach() - centre
            p.grad = self.give(i, 2 * weight * apart)
            loss += float((weight * apart.abs() ** 2).sum())
        return loss


def values(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def leaves(tensors: list[Tensor]) -> list[Any]:
    return [Parameter(tensor.detach().clone(memory_format=torch.contiguous_format)) for tensor in tensors]


def run(cls: Any, problem: Quadratic, steps: int = 3, **arguments: Any) -> Any:
    optimizer = cls(problem.params, **{"max_iter": 4, **arguments})
    for _ in range(steps):
        optimizer.step(problem.closure)
    return optimizer


MIXED = [(5, 7), (9,), (), (0, 3), (67,), (40, 40), (3,), (2, 3, 4, 5)]


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64], ids=str)
@pytest.mark.parametrize("arguments", KINDS)
def test_complex_params_beside_real_ones(arguments: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = [*values(*MIXED, dtype=dtype), *values((6, 5), dtype=dtype.to_real())]
    ours, torchs = (run(cls, Quadratic(leaves(tensors)), **arguments) for cls in (fusedopt.LBFGS, torch.optim.LBFGS))
    assert_near(ours._params, torchs._params, 1e-9 if dtype == torch.complex128 else 1e-5)
    assert_same_course(ours, torchs)


@pytest.mark.parametrize("missing", [(0,), (1, 5), (5, 7), range(8)], ids=str)
@pytest.mark.parametrize("arguments", KINDS)
def test_no_gradient_is_one_of_zeros(arguments: dict[str, Any], missing: Sequence[int]) -> None:
    """The param stays where it is and has its place in the history."""

    def give(i: int, grad: Tensor) -> Tensor | None:
        return None if i in missing else grad

    tensors = values(*MIXED)
    ours, torchs = (
        run(cls, Quadratic(leaves(tensors), give), **arguments) for cls in (fusedopt.LBFGS, torch.optim.LBFGS)
    )
    assert_near(ours._params, torchs._params)
    assert_same_course(ours, torchs)
    for i in missing:
        assert torch.equal(ours._params[i], tensors[i])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("layout", OF_ONE_SHAPE, ids=str)
@pytest.mark.parametrize("arguments", KINDS)
def test_params_and_gradients_may_have_any_strides(
    arguments: dict[str, Any], layout: Layout, dtype: torch.dtype
) -> None:
    """The same bits as with contiguous ones, which is all that torch takes: the history is in the order of indices."""
    tensors = values((50,), tuple(layout.shape), (3,), dtype=dtype)
    plain = run(fusedopt.LBFGS, Quadratic(leaves(tensors)), **arguments)
    placed = layout.place(tensors[1])
    params = [*leaves(tensors[:1]), placed.tensor.requires_grad_(), *leaves(tensors[2:])]
    odd = run(fusedopt.LBFGS, Quadratic(params), **arguments)
    placed.assert_others_untouched()
    assert_identical(flat(odd._params), flat(plain._params))

    def give(i: int, grad: Tensor) -> Tensor:
        return layout.place(grad).tensor if i == 1 else grad

    odd = run(fusedopt.LBFGS, Quadratic(leaves(tensors), give), **arguments)
    assert_identical(flat(odd._params), flat(plain._params))


def test_sparse_gradients_are_made_dense() -> None:
    def give(i: int, grad: Tensor) -> Tensor:
        return grad.to_sparse() if i == 0 else grad

    tensors = values((5, 7), (9,))
    ours, torchs = (run(cls, Quadratic(leaves(tensors), give), **WOLFE) for cls in (fusedopt.LBFGS, torch.optim.LBFGS))
    assert_near(ours._params, torchs._params)
    assert_same_course(ours, torchs)


@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16,) * 3, (torch.float16,) * 3, (torch.float32, torch.float64, torch.float32)],
    ids=["bfloat16", "float16", "mixed"],
)
def test_what_the_engines_lack_takes_torchs_step(
    dtypes: tuple[torch.dtype, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_C, "lbfgs_products", None)
    tensors = [tensor.to(dtype) for tensor, dtype in zip(values((5, 7), (9,), (3,)), dtypes, strict=True)]
    ours, torchs = (run(cls, Quadratic(leaves(tensors)), **FIXED) for cls in (fusedopt.LBFGS, torch.optim.LBFGS))
    for p, q in zip(ours._params, torchs._params, strict=True):
        assert_identical(p.detach(), q.detach())


def test_a_large_vector_over_many_tensors() -> None:
    """Chunks that begin and end inside tensors, and tensors of many chunks."""
    tensors = values((3000,), *[(17,)] * 200, (130, 50), (1024,), (1,))
    for arguments in (FIXED, WOLFE):
        ours, torchs = (
            run(cls, Quadratic(leaves(tensors)), history_size=5, **arguments)
            for cls in (fusedopt.LBFGS, torch.optim.LBFGS)
        )
        assert_near(ours._params, torchs._params)
        assert_same_course(ours, torchs)


def test_products_are_those_of_the_vectors() -> None:
    params = leaves(values((3000,), (17,), (5, 5)))
    n = sum(p.numel() for p in params)
    previous, direction, x = values((n,), (n,), (n,))
    for p in params:
        p.grad = torch.randn_like(p)
    g = flat([p.grad for p in params])
    y, s = g - previous, 0.3 * direction
    expected = [g.abs().max(), g.abs().sum(), y @ g, y @ y, s @ g, s @ y, x @ g, x @ y]
    found = _C.lbfgs_products(params, None, previous, direction, 0.3, [x])
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), torch.stack(expected), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("arguments", KINDS)
def test_a_nan_is_carried_on_as_torch_does(arguments: dict[str, Any]) -> None:
    """It is no gradient below the tolerance."""

    def give(i: int, grad: Tensor) -> Tensor:
        return grad * torch.nan if i == 1 else grad

    ours, torchs = (
        run(cls, Quadratic(leaves(values((5, 7), (3,))), give), steps=1, **arguments)
        for cls in (fusedopt.LBFGS, torch.optim.LBFGS)
    )
    assert_same_course(ours, torchs)
    assert torch.equal(flat(ours._params).isnan(), flat(torchs._params).isnan())


@pytest.mark.parametrize("arguments", KINDS)
def test_the_closure_runs_with_gradients_and_its_first_loss_comes_back(arguments: dict[str, Any]) -> None:
    problem = LeastSquares()
    optimizer = fusedopt.LBFGS(problem.params, max_iter=5, **arguments)
    losses: list[Tensor] = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        losses.append(closure_of(problem, optimizer)())
        return losses[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
        assert not torch.is_grad_enabled()
    assert len(losses) == optimizer.state[problem.params[0]]["func_evals"] > 1


@pytest.mark.parametrize("arguments", KINDS)
def test_a_closure_may_change_params(arguments: dict[str, Any]) -> None:
    """As where it clamps an image: a line search puts the params back, fixed steps go on from there."""
    made = []
    for cls in (fusedopt.LBFGS, torch.optim.LBFGS):
        problem = Quadratic(leaves(values((5, 7))))

        def closure(problem: Quadratic = problem) -> float:
            problem.params[0].data.clamp_(-0.2, 0.6)
            return problem.closure()

        optimizer = cls(problem.params, max_iter=3, **arguments)
        for _ in range(3):
            optimizer.step(closure)
        made.append(problem.params)
    assert_near(made[0], made[1])


@pytest.mark.parametrize("arguments", KINDS)
def test_after_a_closure_that_raised_the_state_is_that_of_the_last_move(arguments: dict[str, Any]) -> None:
    problem = LeastSquares()
    optimizer = fusedopt.LBFGS(problem.params, max_iter=5, **arguments)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(flat(problem.params))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return closure_of(problem, optimizer)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    state = optimizer.state[problem.params[0]]
    torch.testing.assert_close(seen[2] + state["t"] * state["d"], seen[3])
    before = problem.loss()
    for _ in range(8):
        optimizer.step(closure)
    assert problem.loss() < before / 2


def test_what_is_written_knows_it() -> None:
    """Autograd refuses a backward pass through params that a step has changed."""
    problem = LeastSquares()
    optimizer = fusedopt.LBFGS(problem.params, max_iter=2, **FIXED)
    loss = problem.loss()
    optimizer.step(closure_of(problem, optimizer))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["ours", "torch's step"])
def test_hooks_run_once(dtype: torch.dtype) -> None:
    calls: list[str] = []
    problem = Quadratic(leaves([tensor.to(dtype) for tensor in values((5, 7))]))
    torch.optim.LBFGS(leaves(values((2,))))  # torch wraps its own step then
    optimizer = fusedopt.LBFGS(problem.params, **FIXED)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step(problem.closure)
    assert calls == ["pre", "post"]


def test_a_learning_rate_may_be_a_tensor_and_scheduled() -> None:
    """The history's pairs are of the moves as they were; in torch a schedule changes the tensor, and by it the last."""
    made = []
    for cls, lr in (
        (fusedopt.LBFGS, torch.tensor(0.25, dtype=torch.float64)),
        (fusedopt.LBFGS, 0.25),
        (torch.optim.LBFGS, 0.25),
    ):
        problem = LeastSquares()
        optimizer = cls(problem.params, lr=lr, max_iter=3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for _ in range(3):
            optimizer.step(closure_of(problem, optimizer))
            schedule.step()
        made.append(problem.params)
    assert_identical(flat(made[0]), flat(made[1]))
    assert_near(made[0], made[2])


def _second_group(cls: Any) -> None:
    optimizer = cls(leaves(values((2,))))
    optimizer.add_param_group({"params": leaves(values((3,)))})
    optimizer.step(lambda: 0.0)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "groups": lambda cls: cls([{"params": leaves(values((2,)))}, {"params": leaves(values((3,)))}]),
    "a second group": _second_group,
    "negative lr": lambda cls: cls(leaves(values((2,))), lr=-1.0),
    "two lrs": lambda cls: cls(leaves(values((2,))), lr=torch.tensor([1.0, 2.0])),
    "no params": lambda cls: cls([]),
    "no tensor": lambda cls: cls([1.0]),
    "line search": lambda cls: run(cls, Quadratic(leaves(values((2,)))), line_search_fn="wolfe"),
    "no closure": lambda cls: cls(leaves(values((2,)))).step(),
    "None": lambda cls: cls(leaves(values((2,)))).step(None),
    "no history": lambda cls: run(cls, Quadratic(leaves(values((2,)))), history_size=0, lr=0.1),
    "empty": lambda cls: run(cls, Quadratic(leaves(values((0,))))),
    "overlapping": lambda cls: run(cls, Quadratic([torch.zeros(1).expand(3).requires_grad_()])),
    "a loss of two": lambda cls: cls(leaves(values((2,)))).step(lambda: torch.zeros(2)),
}


@pytest.mark.parametrize("act", REFUSED.values(), ids=REFUSED)
def test_what_torch_refuses_is_refused(act: Callable[[Any], Any]) -> None:
    expected = outcome(lambda: act(torch.optim.LBFGS))
    assert outcome(lambda: act(fusedopt.LBFGS)) == expected
    assert expected is not None


def test_a_param_that_changes_while_the_closure_runs_is_refused() -> None:
    problem = Quadratic(leaves(values((5,))))
    optimizer = fusedopt.LBFGS(problem.params, **FIXED)

    def closure() -> float:
        problem.params[0].data = problem.params[0].data.half()
        return 0.0

    with pytest.raises(RuntimeError, match="changed its dtype, device, shape or layout while the closure ran"):
        optimizer.step(closure)
