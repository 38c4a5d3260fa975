"""Strides, offsets and sizes of params, gradients and states: every element is found, nothing else is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER, Case
from layouts import OF_ONE_SHAPE, OTHERS, Layout, Placed
from runs import GradientRun, leaves, random_gradients, state_tensors, train
from support import assert_identical, assert_same, params_of
from tiers import of_a_kind, slow, thinned
from torch import Tensor
from torch.nn import Parameter

import fusedopt

every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)

# A rule is to a walk how many states it has, and whether it reads its operands a second time.
WALKS = {"sgd", "sgd-momentum", "adam", "adam-amsgrad", "lamb"}


class Expected:
    """What a run on contiguous copies gives: our param and states, and torch's param."""

    def __init__(self, case: Case, values: Tensor, run: GradientRun) -> None:
        self.case = case
        dense: GradientRun = [[g if g is None else g.contiguous() for g in grads] for grads in run]
        ours = case.ours(leaves([values]))
        (self.param,) = train(ours, dense)
        self.states = state_tensors(ours, self.param)
        (self.torchs,) = train(case.torchs(leaves([values])), dense)

    def assert_reached_by(self, optimizer: torch.optim.Optimizer) -> None:
        (p,) = params_of(optimizer)
        assert_same(self.case, [p.detach()], [self.param.detach()])
        torch.testing.assert_close(p, self.torchs)
        states = state_tensors(optimizer, p)
        assert_same(self.case, [states[name] for name in self.states], list(self.states.values()))


@thinned(
    "a walk through memory knows no rule",
    keep=lambda case, layout: case.name in WALKS or layout.name == "gaps-everywhere",
)
@pytest.mark.parametrize("layout", [*OF_ONE_SHAPE, *OTHERS], ids=str)
@every_case
def test_a_layout_of_the_param_of_its_gradient_and_of_both(case: Case, layout: Layout) -> None:
    values = torch.randn(layout.shape)
    run = random_gradients([values], steps=3)
    laid_out: GradientRun = [[layout.place(g).tensor for g in grads if g is not None] for grads in run]
    expected = Expected(case, values, run)
    for grads in (run, laid_out):
        placed = layout.place(values)
        address, strides = placed.tensor.data_ptr(), placed.tensor.stride()
        ours = case.ours([Parameter(placed.tensor)])
        (p,) = train(ours, grads)
        expected.assert_reached_by(ours)
        placed.assert_others_untouched()
        assert (p.data_ptr(), p.stride()) == (address, strides)
        assert_identical(placed.tensor, p.detach())
    ours = case.ours(leaves([values]))
    train(ours, laid_out)
    expected.assert_reached_by(ours)


@thinned("a walk through memory knows no rule", keep=lambda case: case.name == "adam")
@pytest.mark.parametrize("grad_layout", OF_ONE_SHAPE, ids=str)
@pytest.mark.parametrize("layout", OF_ONE_SHAPE, ids=str)
@one_per_optimizer
def test_params_gradients_and_states_of_different_layouts(case: Case, layout: Layout, grad_layout: Layout) -> None:
    values = torch.randn(layout.shape)
    run = random_gradients([values], steps=3)
    expected = Expected(case, values, run)
    grads = [grad_layout.place(g) for gs in run for g in gs if g is not None]
    for first in range(len(OF_ONE_SHAPE)):
        placed = layout.place(values)
        ours = case.ours([Parameter(placed.tensor)])
        (p,) = train(ours, [[grads[0].tensor]])
        states = {}
        for i, (name, tensor) in enumerate(state_tensors(ours, p).items()):
            # A second state lies differently again.
            states[name] = OF_ONE_SHAPE[(first + 3 * i) % len(OF_ONE_SHAPE)].place(tensor)
            ours.state[p][name] = states[name].tensor
        train(ours, [[g.tensor] for g in grads[1:]])
        expected.assert_reached_by(ours)
        placed.assert_others_untouched()
        for name, state in states.items():
            assert ours.state[p][name] is state.tensor
            state.assert_others_untouched()
    for grad, before in zip(grads, run, strict=True):
        grad.assert_others_untouched()
        assert_identical([grad.tensor], before)


@thinned("a walk through memory knows no rule", keep=of_a_kind, together=0)
@one_per_optimizer
def test_more_dimensions_than_any_loop_nest(case: Case) -> None:
    """Gaps and a permutation keep any two of the twelve dimensions from being walked as one."""
    layout = Layout("", (3,) * 12, lambda b: b[(slice(0, 3, 2),) * 12].permute(*range(11, -1, -1)))
    values = torch.randn(layout.shape)
    run = random_gradients([values], steps=3)
    placed = layout.place(values)
    ours = case.ours([Parameter(placed.tensor)])
    train(ours, run)
    Expected(case, values, run).assert_reached_by(ours)
    placed.assert_others_untouched()


@thinned("a walk through memory knows no rule", keep=lambda case: case.name == "adam")
@pytest.mark.parametrize(
    "source",
    [(), (1,), (6,), (5, 1), (4, 1, 1, 1), (3, 1, 6), (4, 1, 5, 1)],
    ids=lambda s: "x".join(map(str, s)) or "0-dim",
)
@pytest.mark.parametrize("layout", OF_ONE_SHAPE, ids=str)
@one_per_optimizer
def test_expanded_gradients(case: Case, layout: Layout, source: tuple[int, ...]) -> None:
    values = torch.randn(layout.shape)
    run: GradientRun = [[torch.randn(source).expand(layout.shape)] for _ in range(3)]
    placed = layout.place(values)
    ours = case.ours([Parameter(placed.tensor)])
    train(ours, run)
    placed.assert_others_untouched()
    Expected(case, values, run).assert_reached_by(ours)


@one_per_optimizer
def test_empty_tensors_with_strides_of_zero(case: Case) -> None:
    """torch's arithmetic gives (2, 0, 1) results of strides (0, 1, 0), which SGD's first buffer inherits."""
    values = torch.randn(2, 0, 1)
    run: GradientRun = [[2 * g for g in grads if g is not None] for grads in random_gradients([values], steps=3)]
    ours = case.ours(leaves([values, torch.randn(3)]))
    other = random_gradients([torch.empty(3)], steps=3)
    train(ours, [[*empty, *rest] for empty, rest in zip(run, other, strict=True)])
    assert params_of(ours)[0].shape == (2, 0, 1)


@one_per_optimizer
def test_gradients_may_change_their_layout_from_step_to_step(case: Case) -> None:
    values = torch.randn(4, 3, 5, 6)
    run = random_gradients([values], steps=2 * len(OF_ONE_SHAPE))
    changing: GradientRun = [
        [OF_ONE_SHAPE[i % len(OF_ONE_SHAPE)].place(g).tensor for g in gs if g is not None] for i, gs in enumerate(run)
    ]
    ours = case.ours(leaves([values]))
    train(ours, changing)
    Expected(case, values, run).assert_reached_by(ours)


@thinned("every mix of sizes and storages is the engine test's")
@one_per_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_layouts_of_other_dtypes(case: Case, dtype: torch.dtype) -> None:
    layouts = [*OF_ONE_SHAPE, *OTHERS]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    values = [torch.randn(layout.shape, dtype=dtype if dtype.is_complex else real).to(dtype) for layout in layouts]
    run = random_gradients(values, steps=3)
    placed = [layout.place(v) for layout, v in zip(layouts, values, strict=True)]
    train(case.ours([Parameter(x.tensor) for x in placed]), run)
    expected = train(case.ours(leaves(values)), run)
    assert_same(case, [x.tensor for x in placed], [p.detach() for p in expected])
    for x in placed:
        x.assert_others_untouched()


SIZES = sorted({*range(71), *(m * k + d for m in (64, 512, 1024) for k in range(1, 1024 // m + 1) for d in (-1, 0, 1))})


@thinned("every mix of sizes and storages is the engine test's")
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_size_writes_its_own_elements_only(case: Case, dtype: torch.dtype) -> None:
    """A tensor of n elements gets what it would alone, and no neighbour is written."""

    def place(values: Tensor, n: int) -> Placed:
        offset = 1 + n % 9
        return Placed((n + 20,), lambda b: b[offset : offset + n], values[:n])

    longest = torch.randn(SIZES[-1]).to(dtype)
    run = random_gradients([longest], steps=3)
    whole = case.ours(leaves([longest[:n] for n in SIZES]))
    expected = train(whole, [[g[:n] for n in SIZES] for gs in run for g in gs if g is not None])

    placed = [place(longest, n) for n in SIZES]
    grads = [[place(g, n) for n in SIZES] for gs in run for g in gs if g is not None]
    ours = case.ours([Parameter(x.tensor) for x in placed])
    params = train(ours, [[x.tensor for x in grads[0]]])
    states = []
    for n, p in zip(SIZES, params, strict=True):
        for name, tensor in state_tensors(ours, p).items():
            states.append(place(tensor, n))
            ours.state[p][name] = states[-1].tensor
    train(ours, [[x.tensor for x in xs] for xs in grads[1:]])

    assert_identical([x.tensor for x in placed], [q.detach() for q in expected])
    assert_identical([x.tensor for x in states], [s for q in expected for s in state_tensors(whole, q).values()])
    for x in (*placed, *states, *(x for xs in grads for x in xs)):
        x.assert_others_untouched()
    if case.elementwise:
        assert_identical([q.detach() for q in expected], [expected[-1].detach()[:n] for n in SIZES])


@thinned("a list of params is gone through by what knows no rule", keep=of_a_kind, together=0)
@every_case
def test_hundreds_of_small_params(case: Case) -> None:
    generator = torch.Generator().manual_seed(3)
    ranks = torch.randint(0, 4, (400,), generator=generator).tolist()
    values = [torch.randn(torch.randint(0, 7, (rank,), generator=generator).tolist()) for rank in ranks]
    run = random_gradients(values, steps=3)
    together = train(case.ours(leaves(values)), run)
    torch.testing.assert_close(together, train(case.torchs(leaves(values)), run))
    for i in range(0, 0 if case.joint else len(values), 7):
        assert_identical([together[i]], train(case.ours(leaves([values[i]])), [[grads[i]] for grads in run]))


@every_case
def test_equal_elements_stay_equal(case: Case) -> None:
    """Wherever they lie: in a vector body, a tail, a row with gaps."""
    ours = case.ours(
        [Parameter(torch.full((n,), 0.3)) for n in SIZES if n] + [Parameter(torch.full((67, 5), 0.3)[:, 1:4])]
    )
    for _ in range(3):
        for p in params_of(ours):
            p.grad = torch.full(p.shape, 0.7)
        ours.step()
    values = [p.detach().flatten() for p in params_of(ours)]
    for together in [torch.cat(values)] if case.elementwise else values:
        assert together.unique().numel() == 1


def _available_gib() -> float:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0.0
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) / 2**20


@slow("9 GiB are read and written for what an edit of an engine alone can break")
@pytest.mark.large
def test_a_param_of_more_than_2_to_the_31_elements() -> None:
    if _available_gib() < 12:
        pytest.skip("a param and a gradient of 2**31 16-bit elements want 12 GiB of available memory")
    count = 2**31 + 1027
    param = Parameter(torch.ones(count, dtype=torch.bfloat16))
    param.grad = torch.full((count,), 0.5, dtype=torch.bfloat16)
    # Positions that a 32-bit index would confuse have gradients of their own.
    marks = torch.tensor([0, 1026, 2**30, 2**31 - 1, 2**31, 2**31 + 1, count - 1])
    param.grad[marks] = torch.arange(1, len(marks) + 1, dtype=torch.bfloat16)
    fusedopt.SGD([param], lr=0.5).step()
    result = param.detach()
    assert result[marks].tolist() == [1 - 0.5 * (i + 1) for i in range(len(marks))]
    result[marks] = 0.75
    # In pieces, because a comparison of the whole would take gigabytes of its own; four elements at a time.
    *pieces, rest = result.split(2**26)
    four = torch.full((4,), 0.75, dtype=torch.bfloat16).view(torch.int64)
    assert all((piece.view(torch.int64) == four).all() for piece in pieces)
    assert (rest == 0.75).all()
