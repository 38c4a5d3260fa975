"""The CUDA engine's results are the CPU engine's, bit for bit, whatever the tensors' storages, sizes and places."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from backends import (  # noqa: F401
    CHUNK,
    Backend,
    Cuda,
    Emulated,
    backend_fixture,
    counter_flags,
    cuda_fixture,
    emulated_fixture,
    spread,
)
from cases import CASES, ONE_PER_OPTIMIZER, Case
from layouts import GUARD, OF_ONE_SHAPE, OTHERS, Layout
from tiers import of_a_kind, thinned
from torch import Tensor
from torch.nn import Parameter
from twins import Twins, simple

import fusedopt

STORAGES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_per_optimizer = pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
every_storage = pytest.mark.parametrize("dtype", STORAGES, ids=str)

# Around everything that the kernels count in: vectors of 2 to 8, warps of 32, tiles of 64 to 256, chunks, several.
EDGES = [2**k for k in range(1, 11)] + [CHUNK, CHUNK + 256, 2 * CHUNK]
SIZES = sorted({0, 1, *(edge + d for edge in EDGES for d in (-1, 0, 1))})


def guarded(values: Tensor, offset: int) -> Tensor:
    """The values as a view between elements that nobody may write, `offset` elements behind an aligned address."""
    base = torch.full((values.numel() + offset + 16,), GUARD, dtype=values.dtype)
    view = base[offset : offset + values.numel()]
    view.copy_(values)
    return view


@thinned("every mix of sizes, places and storages is the engine test's")
@pytest.mark.parametrize(("dtype", "there"), [*((dtype, True) for dtype in STORAGES), (torch.float32, False)], ids=str)
@every_case
def test_every_size(backend: Backend, case: Case, dtype: torch.dtype, there: bool) -> None:
    backend.numbers_on_device(there)
    twins = Twins(
        backend, simple(case, **counter_flags(case, there)), [guarded(spread(n, dtype=dtype), 8) for n in SIZES]
    )
    assert backend.launches(twins.ours.step) == 0  # nothing has a gradient
    for _ in range(3):
        twins.give([guarded(spread(n, dtype=dtype), 8) for n in SIZES])
        twins.step_cpu()
        assert backend.launches(twins.ours.step) >= 2
        twins.check()


@thinned("every mix of sizes, places and storages is the engine test's")
@every_storage
@every_case
def test_every_place(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    """Params, gradients and states each start at some distance from an aligned address: none, the same or others."""
    sizes = [n for n in SIZES for _ in range(3)]
    twins = Twins(backend, simple(case), [guarded(spread(n, dtype=dtype), i % 4) for i, n in enumerate(sizes)])
    for step in range(3):
        twins.step([guarded(spread(n, dtype=dtype), (i + i // 3 * step) % 4) for i, n in enumerate(sizes)])
        twins.check()
        if step == 0:
            twins.set_states(lambda i, k, state: guarded(state, (i + i // 3 * k) % 4))


@one_per_optimizer
def test_every_alignment_of_vectors(backend: Backend, case: Case) -> None:
    """Operands are aligned to 16 bytes or to 32, in float32 and in bfloat16 beside it; some lanes take a tile again."""
    rows = list(product([torch.float32, torch.bfloat16], [0, 16], [0, 16], [0, 16]))

    def placed(dtype: torch.dtype, behind: int) -> Tensor:
        return guarded(spread(2 * CHUNK + 71, dtype=dtype), behind // dtype.itemsize)

    twins = Twins(backend, simple(case), [placed(dtype, param) for dtype, param, _, _ in rows])
    for step in range(3):
        grads = [placed(dtype, grad) for dtype, _, grad, _ in rows]
        for grad in grads:
            grad[step::97] = 1e-40
        twins.step(grads)
        twins.check()
        if step == 0:
            twins.set_states(lambda i, k, state: guarded(state.float(), rows[i][3] * (k != 1) // 4))


@thinned("every mix of sizes, places and storages is the engine test's")
@pytest.mark.parametrize("size", [67, 2 * CHUNK + 71])
@every_case
def test_every_mix_of_storages(backend: Backend, case: Case, size: int) -> None:
    """All together in one step, so that rows of every kernel stand between those of the others."""
    mixes = list(product(STORAGES, repeat=3))
    mixes = [mixes[i] for i in torch.randperm(len(mixes)).tolist()]
    twins = Twins(backend, simple(case), [spread(size, dtype=param) for param, _, _ in mixes])
    for step in range(3):
        twins.step([spread(size, dtype=grad) for _, grad, _ in mixes])
        twins.check()
        if step == 0:
            twins.set_states(lambda i, k, state: state.to(mixes[i][2]))


@thinned("finding a tensor's elements knows no rule", keep=of_a_kind, together=0)
@every_case
def test_states_of_several_storages(backend: Backend, case: Case) -> None:
    params = [dtype for dtype in STORAGES for _ in STORAGES]
    twins = Twins(backend, simple(case), [spread(CHUNK + 300, dtype=dtype) for dtype in params])
    twins.step()
    twins.set_states(lambda i, k, state: state.to(STORAGES[(i + k) % 4]))
    twins.train(2)


# As those of one shape, but longer than a chunk.
LONG = [
    Layout("contiguous", (50, 70), lambda b: b),
    Layout("transposed", (70, 50), lambda b: b.t()),
    Layout("every-second", (50, 140), lambda b: b[:, ::2]),
    Layout("gaps", (107, 150), lambda b: b[3:103:2, 5:145:2]),
    Layout("transposed-gaps", (71, 153), lambda b: b[1:, 2:152:3].t()),
]


@thinned("a walk through memory knows no rule")
@pytest.mark.parametrize("family", [OF_ONE_SHAPE, LONG], ids=["short", "long"])
@every_storage
@one_per_optimizer
def test_layouts_of_params_gradients_and_states(
    backend: Backend, case: Case, dtype: torch.dtype, family: list[Layout]
) -> None:
    pairs = list(product(family, family))
    shape = family[0].shape
    twins = Twins(backend, simple(case), [layout.place(spread(*shape, dtype=dtype)).tensor for layout, _ in pairs])
    for step in range(4):
        twins.step([layout.place(spread(*shape, dtype=dtype)).tensor for _, layout in pairs])
        twins.check()
        # A second state lies differently again, and every state differently after the next step.
        twins.set_states(lambda i, k, state: family[(i // 3 + 3 * k + step) % len(family)].place(state).tensor)  # noqa: B023


@thinned("finding a tensor's elements knows no rule", keep=of_a_kind, together=0)
@every_case
def test_other_layouts(backend: Backend, case: Case) -> None:
    twelve = Layout("", (3,) * 12, lambda b: b[(slice(0, 3, 2),) * 12].permute(*range(11, -1, -1)))
    layouts = [layout for layout in [*OTHERS, *OF_ONE_SHAPE, twelve] for _ in range(2)]
    values = [spread(*layout.shape) for layout in layouts]
    twins = Twins(backend, simple(case), [x.place(v).tensor for x, v in zip(layouts, values, strict=True)])
    for _ in range(3):
        grads = [spread(*layout.shape) for layout in layouts]
        # One of each pair has a dense gradient.
        twins.step([x.place(g).tensor if i % 2 else g for i, (x, g) in enumerate(zip(layouts, grads, strict=True))])
        twins.check()


@thinned("every mix of sizes, places and storages is the engine test's")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@every_case
def test_complex_params(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    values = [layout.place(spread(*layout.shape, dtype=dtype)).tensor for layout in OF_ONE_SHAPE]
    values += [spread(n, dtype=dtype) for n in (0, 1, CHUNK // 2, CHUNK + 3)]
    Twins(backend, simple(case), values).train()


@thinned("finding a tensor's elements knows no rule", keep=of_a_kind, together=0)
@every_case
def test_expanded_gradients(backend: Backend, case: Case) -> None:
    """Their elements share memory, in all dimensions or some."""
    shape = (30, 7, 11)
    twins = Twins(backend, simple(case), [spread(*shape) for _ in range(5)])
    for _ in range(3):
        sources = [(), (1,), (11,), (7, 1), (30, 1, 1)]
        grads = [spread(*source).expand(shape) for source in sources]
        twins.step(grads)
        twins.check()


@thinned("finding a tensor's elements knows no rule", keep=of_a_kind, together=0)
@every_case
def test_hundreds_of_tensors(backend: Backend, case: Case) -> None:
    """Of random sizes, many empty, and of all storages; searches for a chunk's row meet every situation."""
    sizes = (torch.randint(0, 3, (300,)) * torch.randint(0, 2500, (300,))).tolist()
    dtypes = [STORAGES[i] for i in torch.randint(0, 4, (300,)).tolist()]
    twins = Twins(backend, simple(case), [spread(n, dtype=d) for n, d in zip(sizes, dtypes, strict=True)])
    twins.train()


@thinned("finding a tensor's elements knows no rule", keep=of_a_kind, together=0)
@every_case
def test_many_groups(backend: Backend, case: Case) -> None:
    """Each with numbers of its own, some as its neighbour, and some groups empty."""

    def build(params: list[Any]) -> Any:
        groups, first = [], 0
        for i in range(200):
            groups.append({"params": params[first : first + i % 3], **case.own(0.001 * (i // 2 + 1))})
            first += i % 3
        return case.ours(groups)

    twins = Twins(backend, build, [spread(n % 50) for n in range(199)])
    twins.train()
    for round_ in range(3):

        def change(optimizer: Any, params: list[Any]) -> None:
            for i, group in enumerate(optimizer.param_groups):
                group["weight_decay" if case.joint else "lr"] *= 1 + i % (round_ + 2)  # noqa: B023
                group["maximize"] = i % 5 == round_  # noqa: B023

        twins.edit(change)
        twins.train(2)


def _special_values(dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    finite = [
        0.0,
        1.0,
        0.3,
        1e3,
        info.eps,
        info.max,
        info.max / 3,
        info.tiny,
        info.tiny * 1.5,
        info.smallest_normal / 8,
    ]
    finite += [info.max**0.5, info.tiny**0.5, info.smallest_normal * info.eps]
    return torch.tensor([*finite, *(-x for x in finite), torch.inf, -torch.inf, torch.nan], dtype=dtype)


@thinned("every mix of sizes, places and storages is the engine test's", each_rule=True)
@every_storage
@every_case
def test_special_values(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    """NaN, infinities, both zeros, denormals and huge numbers, each as a param with each as its gradient."""
    special = _special_values(dtype)
    n = len(special)
    twins = Twins(backend, simple(case), [special.repeat_interleave(n)])
    for step in range(5):
        twins.step([special.roll(step).repeat(n)])
        twins.check()


@thinned("an order is as good as another")
@pytest.mark.parametrize("seed", range(1, 7))
@one_per_optimizer
def test_blocks_and_threads_run_in_any_order(emulated: Emulated, case: Case, seed: int) -> None:
    sizes = (0, 1, 63, CHUNK, 3 * CHUNK + 7, 5, 700)
    values = [spread(n, dtype=dtype) for dtype in STORAGES for n in sizes]
    values += [layout.place(spread(*layout.shape)).tensor for layout in LONG]
    twins = Twins(emulated, simple(case), values)
    emulated.control.set_seed(seed)
    for found in (0.0, 1.0, 0.0, 0.0):
        for optimizer, _ in twins.both():
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(found), torch.tensor(3.0)
        twins.train(1)


@thinned("an order is as good as another", keep=of_a_kind, together=0)
@one_per_optimizer
def test_a_thread_of_the_system_for_each_of_the_device(emulated: Emulated, case: Case) -> None:
    emulated.control.use_threads(True)
    values = [spread(n, dtype=dtype) for dtype in STORAGES[::2] for n in (3, CHUNK + 257)]
    Twins(emulated, simple(case), [*values, LONG[3].place(spread(*LONG[3].shape)).tensor]).train(2)


@every_storage
def test_offsets_beyond_2_to_the_31(backend: Backend, dtype: torch.dtype) -> None:
    """Three rows of a tensor so wide that the last lies behind what 32 bits count; most of its memory is not there."""
    wide = 2**30 + 1029
    try:
        base = torch.empty(2 * wide + 2 * CHUNK, dtype=dtype, device=backend.device)
    except RuntimeError:
        pytest.skip("no address space for a tensor of 2**31 elements")
    values, grad = (spread(3, CHUNK + 5, dtype=dtype) for _ in range(2))
    param = base.as_strided(values.shape, (wide, 1))
    param.copy_(values)
    ours = backend.adopt(fusedopt.SGD([Parameter(param)], lr=0.1, weight_decay=0.3))
    ours.param_groups[0]["params"][0].grad = backend.place(grad)
    expected = Parameter(values)
    expected.grad = grad
    ours.step()
    fusedopt.SGD([expected], lr=0.1, weight_decay=0.3).step()
    assert torch.equal(param.cpu(), expected.detach())


@pytest.mark.large
def test_a_param_of_more_than_2_to_the_31_elements(cuda: Cuda) -> None:
    count = 2**31 + 3 * CHUNK + 5
    if torch.cuda.mem_get_info()[0] < 5 * count * 2:
        pytest.skip("a param and a gradient of 2**31 16-bit elements want 20 GiB of the GPU's memory")
    param = Parameter(torch.ones(count, dtype=torch.bfloat16, device="cuda"))
    param.grad = torch.full((count,), 0.5, dtype=torch.bfloat16, device="cuda")
    # Positions that a 32-bit index would confuse have gradients of their own.
    marks = torch.tensor([0, 1026, 2**30, 2**31 - 1, 2**31, 2**31 + 1, count - 1], device="cuda")
    param.grad[marks] = torch.arange(1, len(marks) + 1, dtype=torch.bfloat16, device="cuda")
    fusedopt.SGD([param], lr=0.5).step()
    result = param.detach()
    assert result[marks].tolist() == [1 - 0.5 * (i + 1) for i in range(len(marks))]
    result[marks] = 0.75
    assert all((piece == 0.75).all() for piece in result.split(2**27))
