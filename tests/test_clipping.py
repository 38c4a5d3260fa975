"""Gradient norms against torch's function and a float64 oracle: values, dtypes, layouts, what is left to torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from layouts import GUARD, OF_ONE_SHAPE, OTHERS, Layout
from support import assert_identical, outcome
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt import _C

INF, NAN = float("inf"), float("nan")
TORCHS = torch.nn.utils.clip_grad_norm_
ORDERS = [2.0, 1.0, INF, 3.0, 0.5, 2.5]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
# One of many chunks, chunks cut short, and lengths around a chunk's accumulators.
SHAPES: Sequence[tuple[int, ...]] = ((5, 7), (3000,), (), (0, 3), (67,), (256,), (257,), (1024,), (1025,), (2, 700))


def param_with(grad: Tensor) -> Parameter:
    param = Parameter(torch.zeros_like(grad))
    param.grad = grad
    return param


def params_with(*grads: Tensor) -> list[Parameter]:
    """Params with copies of these gradients."""
    return [param_with(grad.clone()) for grad in grads]


def random_grads(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return [torch.randn(shape, dtype=wide).to(dtype) for shape in shapes]


def oracle(grads: Sequence[Tensor], order: float) -> float:
    """Sums of it are rounded once."""
    sizes = torch.cat([grad.detach().resolve_conj().to(torch.complex128).abs().flatten() for grad in grads]).tolist()
    return max(sizes) if order == INF else math.fsum(size**order for size in sizes) ** (1 / order)


def assert_rounded(norm: Tensor, expected: float) -> None:
    """No further from the expected number than half an ulp, or some roundings of a double."""
    assert norm.shape == ()
    eps = torch.finfo(norm.dtype).eps
    slack = 0.501 if norm.dtype == torch.float32 else 8
    assert float(norm) == pytest.approx(expected, rel=slack * eps, abs=0)


def scaled_by_torch(grads: Sequence[Tensor], max_norm: float, norm: Tensor) -> list[Tensor]:
    params = params_with(*grads)
    torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return [p.grad for p in params if p.grad is not None]


def of(params: Sequence[Tensor]) -> list[Any]:
    return [p.grad for p in params]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_and_gradients(dtype: torch.dtype, order: float) -> None:
    grads = random_grads(dtype)
    for max_norm in (0.37, 1e9):
        params = params_with(*grads)
        norm = fusedopt.clip_grad_norm_(params, max_norm, order)
        assert norm.dtype == (torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32)
        assert_rounded(norm, oracle(grads, order))
        assert_identical(of(params), scaled_by_torch(grads, max_norm, norm))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_torch(dtype: torch.dtype, order: float) -> None:
    if dtype == torch.float16 and order < 1:
        pytest.skip("torch's overflows")
    grads = [grad for grad in random_grads(dtype) if grad.numel() > 0]  # of none, torch's has no largest
    ours, torchs = params_with(*grads), params_with(*grads)
    norm = fusedopt.clip_grad_norm_(ours, 0.37, norm_type=order, foreach=False)
    expected = TORCHS(torchs, 0.37, norm_type=order)
    half = dtype in (torch.bfloat16, torch.float16)  # torch rounds each tensor's norm to it
    torch.testing.assert_close(norm, expected, rtol=0.02 if half else 3e-6, atol=0, check_dtype=not half)
    torch.testing.assert_close(of(ours), of(torchs), **({"rtol": 0.03, "atol": 1e-3} if half else {}))


def test_dtypes_together() -> None:
    grads = [grad for dtype in DTYPES for grad in random_grads(dtype, [(40,), (1100,)])]
    for chosen, dtype in ((grads, torch.float64), (grads[:2] + grads[4:10], torch.float32)):
        params = params_with(*chosen)
        norm = fusedopt.clip_grad_norm_(params, 0.5)
        assert norm.dtype == dtype
        assert_rounded(norm, oracle(chosen, 2))
        assert_identical(of(params), scaled_by_torch(chosen, 0.5, norm))


@pytest.mark.parametrize("order", [2.0, INF, 3.0])
@pytest.mark.parametrize("layout", [*OF_ONE_SHAPE, *OTHERS], ids=str)
def test_layouts(layout: Layout, order: float) -> None:
    values = torch.randn(layout.shape)
    placed = layout.place(values)
    params = [param_with(placed.tensor), *params_with(torch.randn(5))]
    grads = [grad.clone() for grad in of(params)]
    norm = fusedopt.clip_grad_norm_(params, 0.01, order)
    assert_rounded(norm, oracle(grads, order))
    assert_identical(of(params), scaled_by_torch(grads, 0.01, norm))
    placed.assert_others_untouched()


@pytest.mark.parametrize("order", [2.0, 1.0, INF])
def test_strided_complex(order: float) -> None:
    base = torch.full((20, 6), complex(GUARD, GUARD))
    view = base[::2, 1:4].t()
    view.copy_(torch.randn(3, 10, dtype=torch.complex64))
    grads = [view.clone()]
    params = [param_with(view)]
    norm = fusedopt.clip_grad_norm_(params, 0.1, order)
    assert_rounded(norm, oracle(grads, order))
    assert_identical(of(params), scaled_by_torch(grads, 0.1, norm))
    assert (base[1::2] == complex(GUARD, GUARD)).all()


def test_more_chunks_than_one_level_of_sums_holds() -> None:
    grads = random_grads(shapes=[(n % 5 + 1,) for n in range(3000)])
    params = params_with(*grads)
    norm = fusedopt.clip_grad_norm_(params, 0.5)
    assert_rounded(norm, oracle(grads, 2))
    assert_identical(of(params), scaled_by_torch(grads, 0.5, norm))


def test_the_square_of_a_large_float_does_not_overflow() -> None:
    large = torch.full((3,), 3e38)
    total = fusedopt.local_grad_norm(params_with(large, torch.tensor([2e-30])))
    assert_rounded(fusedopt.norm_from_local(total), math.sqrt(3) * large[0].item())
    for value in (INF, -INF, NAN):
        assert not torch.isfinite(fusedopt.local_grad_norm(params_with(torch.tensor([1.0, value]))))


@pytest.mark.parametrize("order", [2.0, 1.0, INF, 3.0])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_what_is_not_finite_scales_as_torch_does(value: float, order: float) -> None:
    grads = [torch.ones(1500), torch.tensor([1.0, value, 3.0])]
    ours, torchs = params_with(*grads), params_with(*grads)
    norm, expected = fusedopt.clip_grad_norm_(ours, 1.0, order), TORCHS(torchs, 1.0, order)
    torch.testing.assert_close(norm, expected, equal_nan=True)
    torch.testing.assert_close(of(ours), of(torchs), equal_nan=True)


def test_error_if_nonfinite() -> None:
    params = params_with(torch.tensor([1.0, INF]))
    with pytest.raises(RuntimeError, match=r"total norm of order 2.0 for gradients from `parameters` is non-finite"):
        fusedopt.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert_identical(of(params), [torch.tensor([1.0, INF])])
    finite = params_with(torch.tensor([3.0, 4.0]))
    assert fusedopt.clip_grad_norm_(finite, 1.0, error_if_nonfinite=True) == 5


def test_short_gradients_are_not_written_and_long_ones_tell_autograd() -> None:
    (param,) = params_with(torch.tensor([3.0, 4.0]))
    assert param.grad is not None
    version = param.grad._version
    fusedopt.clip_grad_norm_([param], 6.0)
    # A device that alone knows the norm has the write counted all the same.
    assert param.grad._version == version + (_C.cuda_built_for() == "emulated")
    version = param.grad._version
    fusedopt.clip_grad_norm_([param], 1.0)
    assert param.grad._version == version + 1


@pytest.mark.parametrize("form", [list, tuple, iter, lambda params: (p for p in params)])
@pytest.mark.parametrize(
    "grads",
    [[torch.tensor([3.0]), torch.tensor([4.0])], [None, torch.tensor([3.0])], [None], [torch.zeros(0, 3)], []],
    ids=["two", "one without", "none", "empty", "nothing"],
)
def test_what_parameters_may_be(grads: list[Tensor | None], form: Callable[[list[Any]], Any]) -> None:
    if not grads and form not in (list, tuple, iter):
        pytest.skip("torch warns of it, see below")
    ours, torchs = ([Parameter(torch.ones(1)) if g is None else param_with(g.clone()) for g in grads] for _ in "12")
    assert_identical(fusedopt.clip_grad_norm_(form(ours), 1.0), TORCHS(form(torchs), 1.0))
    torch.testing.assert_close(of(ours), of(torchs))


def test_parameters_may_be_one_tensor() -> None:
    param = param_with(torch.tensor([3.0, 4.0]))
    assert fusedopt.clip_grad_norm_(param, 1.0) == 5
    torch.testing.assert_close(param.grad, torch.tensor([0.6, 0.8]))


def test_a_param_listed_twice_counts_twice() -> None:
    ours, torchs = params_with(torch.ones(1500), torch.ones(3)), params_with(torch.ones(1500), torch.ones(3))
    norm = fusedopt.clip_grad_norm_([*ours, *ours], 0.7)
    torch.testing.assert_close(norm, TORCHS([*torchs, *torchs], 0.7))
    torch.testing.assert_close(of(ours), of(torchs))


@pytest.mark.parametrize("threads", [1, 4])
def test_gradients_with_elements_in_common_are_scaled_one_after_the_other(threads: int) -> None:
    """As torch scales them, which goes through the list: what two of them have is multiplied twice, by any thread."""

    def windows() -> list[Parameter]:
        memory = torch.ones(4200)
        square = memory[:4096].view(64, 64)
        parts = [memory[i : i + 4000] for i in range(100)]
        parts += [square.t(), square[:, 1:], square[:, :1], torch.ones(7)]
        params = [Parameter(part.clone()) for part in parts]
        for p, part in zip(params, parts, strict=True):
            p.grad = part
        return params

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(20 if threads > 1 else 1):
            ours, torchs = windows(), windows()
            torch.testing.assert_close(fusedopt.clip_grad_norm_(ours, 620.0), TORCHS(torchs, 620.0))
            torch.testing.assert_close(of(ours), of(torchs))
    finally:
        torch.set_num_threads(before)


def test_an_empty_generator_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="`parameters` is an empty generator"):
        assert fusedopt.clip_grad_norm_((p for p in ()), 1.0) == 0


def test_other_things_than_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"parameters\[1\] is a str; give tensors"):
        fusedopt.clip_grad_norm_([*params_with(torch.ones(2)), "weight"], 1.0)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="parameters are not a list"):
        _C.Grads(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"param_groups\[0\]\['params'\] is not a list; assign a list of tensors"):
        _C.Grads([{"params": None}])
    with pytest.raises(TypeError, match=r"param 1 of group 0 \('b'\) is a int; give tensors"):
        _C.Grads([{"params": [Parameter(torch.ones(2)), 3], "param_names": ["a", "b"]}])


def test_an_expanded_gradient_is_measured_but_not_scaled() -> None:
    params = [*params_with(torch.ones(3)), param_with(torch.tensor(2.0).expand(8))]
    if _C.cuda_built_for() != "emulated":  # elsewhere the host cannot know that there is nothing to scale
        assert fusedopt.clip_grad_norm_(params, 100.0) == math.sqrt(3 + 32)
    with pytest.raises(RuntimeError, match="more than one of its elements refers to a single memory location"):
        fusedopt.clip_grad_norm_(params, 1.0)
    assert_identical(params[0].grad, torch.ones(3))


@pytest.mark.parametrize("order", [0.0, -1.0, -INF, NAN])
def test_orders_that_are_not_positive_are_left_to_torch(order: float) -> None:
    grads = random_grads(shapes=[(40,), (1100,)])
    ours, torchs = params_with(*grads), params_with(*grads)
    expected = outcome(lambda: TORCHS(torchs, 0.5, order))
    assert outcome(lambda: fusedopt.clip_grad_norm_(ours, 0.5, order)) == expected
    torch.testing.assert_close(of(ours), of(torchs), equal_nan=True)


def sparse() -> Tensor:
    return torch.sparse_coo_tensor([[0, 2, 2]], [1.0, 2.0, 3.0], (4,), check_invariants=True)


@pytest.mark.parametrize(
    "odd",
    [sparse, lambda: torch.ones(3, device="meta"), lambda: torch.tensor([1 + 2j, 3j]).conj(), lambda: torch.ones(3)],
    ids=["sparse", "meta", "lazy conjugation", "none"],
)
def test_what_no_engine_takes_is_left_to_torch(odd: Callable[[], Tensor]) -> None:
    def run(function: Any) -> Any:
        params = params_with(torch.tensor([3.0, 4.0]))
        param = Parameter(torch.zeros_like(odd().to_dense()))
        param.grad = odd()
        return function([*params, param], 0.5).item(), params[0].grad

    failed = outcome(lambda: run(TORCHS))
    assert outcome(lambda: run(fusedopt.clip_grad_norm_)) == failed
    if failed is None:
        torch.testing.assert_close(run(fusedopt.clip_grad_norm_), run(TORCHS))


def test_traced_by_torch_compile() -> None:
    def clip(grad: Tensor) -> Tensor:
        param.grad = grad
        return fusedopt.clip_grad_norm_([param], 0.5)

    param = Parameter(torch.zeros(2))
    norm = torch.compile(clip, backend="eager")(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(norm, torch.tensor(5.0))
    torch.testing.assert_close(param.grad, torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize("order", ORDERS)
def test_local_parts_make_the_whole_norm(order: float) -> None:
    grads = random_grads()
    whole = fusedopt.clip_grad_norm_(params_with(*grads), INF, order)
    parts = [fusedopt.local_grad_norm(params_with(*half), order) for half in (grads[:3], grads[3:])]
    assert [(p.dtype, p.shape) for p in parts] == [(torch.float64, ())] * 2
    total = torch.maximum(*parts) if order == INF else parts[0] + parts[1]
    norm = fusedopt.norm_from_local(total, order)
    torch.testing.assert_close(norm.float(), whole, rtol=1e-6, atol=0)
    assert_rounded(norm.float(), oracle(grads, order))
    assert norm.data_ptr() != total.data_ptr()


def test_local_part_of_a_sparse_gradient_and_of_none() -> None:
    param = Parameter(torch.zeros(4))
    param.grad = sparse()
    assert fusedopt.local_grad_norm(param) == 26
    assert fusedopt.local_grad_norm(param, INF) == 5
    assert_identical(fusedopt.local_grad_norm([Parameter(torch.ones(2))]), torch.tensor(0.0, dtype=torch.float64))
    assert fusedopt.local_grad_norm([]) == 0


@pytest.mark.parametrize("order", [0.0, -2.0, NAN])
def test_local_orders_are_positive(order: float) -> None:
    with pytest.raises(ValueError, match=rf"norm_type is {order:.6f}; give a positive number or inf"):
        fusedopt.local_grad_norm(params_with(torch.ones(2)), order)
    with pytest.raises(ValueError, match=rf"norm_type is {order}; give a positive number or inf"):
        fusedopt.norm_from_local(torch.tensor(4.0), order)


@pytest.mark.parametrize("total", [torch.ones(2, dtype=torch.float64), torch.tensor(1.0)], ids=["two", "float32"])
def test_a_total_is_one_double(total: Tensor) -> None:
    with pytest.raises(ValueError, match="the total is not one float64"):
        _C.clip(total, 2.0, None, 1.0, False)
    with pytest.raises(TypeError, match="the total is not a tensor"):
        _C.clip(1.0, 2.0, None, 1.0, False)  # type: ignore[arg-type]
