"""Arguments that torch's classes lack: the rules they make, where they are kept, and that no step leaves them out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, ONE_PER_OPTIMIZER
from runs import give
from support import assert_identical, save_and_load, snapshot
from torch.nn import Parameter

import fusedopt
from fusedopt import _C
from fusedopt.optimizers.muon import _orthogonal

BEYOND = [case for case in CASES if case.goes_beyond]


# transformers 5.24.0 in float64: its arguments, and where START is after ten gradients that are
# sin(3 t + i + k) 10^(i mod 4 - 2) for element i of param k.
START = ([[1.0, -0.5, 0.25], [0.0, 2.0, -1.5]], [0.5, -2.0, 0.1])
ADAFACTOR: dict[str, tuple[dict[str, Any], list[float]]] = {
    "given": (
        {"lr": 0.01, "scale_parameter": False, "relative_step": False, "weight_decay": 0.1},
        [
            *(0.9900283422838797, -0.5122789340287042, 0.2476505511376583, -0.004210618685988384, 1.9808042195814053),
            *(-1.484476519605444, 0.4854332149937504, -1.9815763335438321, 0.1008388885314638),
        ],
    ),
    "given, times the size": (
        {"lr": 0.5, "relative_step": False},
        [
            *(0.9988657602121642, -1.2000011688252359, 0.5228484107852076, -0.13125068675156215, 2.033484213450057),
            *(-1.4754987756953863, 0.21622431911893092, -1.5557907822558112, 0.9155690617708598),
        ],
    ),
    "relative": (
        {"scale_parameter": False},
        [
            *(0.9999834386753378, -0.5173258303893848, 0.2500635450849685, -0.0042648401826313525, 2.00071979008215),
            *(-1.4994029931212542, 0.4903624015488776, -2.0015369604434023, 0.10178866541371637),
        ],
    ),
    "warm-up": (
        {"warmup_init": True},
        [
            *(0.9999999840476913, -0.5000116316490294, 0.2500086134689792, 1.324507028943614e-06, 2.0000002070679552),
            *(-1.5000000293953462, 0.4999943051697705, -1.9999958026388853, 0.10000760322657101),
        ],
    ),
}


@pytest.mark.parametrize(("kwargs", "expected"), ADAFACTOR.values(), ids=ADAFACTOR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_adafactor_steps_as_transformers_does(
    kwargs: dict[str, Any], expected: list[float], dtype: torch.dtype
) -> None:
    params = [Parameter(torch.tensor(start, dtype=dtype)) for start in START]
    optimizer = fusedopt.Adafactor(params, eps=(1e-30, 1e-3), **kwargs)
    for t in range(10):
        for k, p in enumerate(params):
            grad = [math.sin(3 * t + i + k) * 10.0 ** (i % 4 - 2) for i in range(p.numel())]
            p.grad = torch.tensor(grad, dtype=dtype).view(p.shape)
        optimizer.step()
    reached = [value for p in params for value in p.detach().flatten().tolist()]
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert reached == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("given", ["constructor", "group"])
def test_a_warm_up_needs_a_relative_step(given: str) -> None:
    kwargs: dict[str, Any] = {"warmup_init": True, "relative_step": False}
    params = [Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match="warmup_init=True bounds a relative step; it needs relative_step=True"):
        fusedopt.Adafactor(params, **kwargs) if given == "constructor" else fusedopt.Adafactor(
            [{"params": params, **kwargs}]
        )


# timm 1.0.31, its zeropower_via_newtonschulz with five steps of its "quintic", and of its "polar_express".
QUINTIC = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
           (2.8366, -3.0525, 1.2012)]  # fmt: skip
MATRIX = [[3.0, -1.0, 0.5, 2.0], [0.25, 1.5, -2.0, 1.0], [1.0, 0.0, 0.75, -0.5]]
ORTHOGONAL = [
    [0.703125, -0.326171875, 0.10107421875, 0.59375],
    [0.1865234375, 0.6484375, -0.703125, 0.2578125],
    [0.6328125, 0.408203125, 0.326171875, -0.58984375],
]
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")


@needs_muon
def test_muon_takes_coefficients_of_each_iteration() -> None:
    found = _orthogonal(torch.tensor([MATRIX]).bfloat16(), QUINTIC, 5, 1e-7)[0]
    # A last place of these is 0.4 %, and products are summed in any order.
    torch.testing.assert_close(found.float(), torch.tensor(ORTHOGONAL), rtol=0, atol=0.01)
    param = Parameter(torch.zeros(3, 4))
    param.grad = torch.tensor(MATRIX)
    fusedopt.Muon([param], lr=1.0, weight_decay=0.0, nesterov=False, ns_coefficients=QUINTIC).step()
    torch.testing.assert_close(-param.detach(), torch.tensor(ORTHOGONAL), rtol=0, atol=0.01)


@needs_muon
def test_the_last_coefficients_serve_the_iterations_beyond() -> None:
    def run(coefficients: Any) -> torch.Tensor:
        param = Parameter(torch.zeros(3, 4))
        param.grad = torch.tensor(MATRIX)
        fusedopt.Muon([{"params": [param], "ns_coefficients": coefficients}], lr=1.0).step()
        return param.detach()

    assert_identical(run(QUINTIC[:2]), run([QUINTIC[0], *[QUINTIC[1]] * 4]))
    assert_identical(run([QUINTIC[0]]), run(QUINTIC[0]))
    assert not torch.equal(run(QUINTIC), run(QUINTIC[0]))


@needs_muon
@pytest.mark.parametrize("coefficients", [[], (1.0, 2.0), [(3.0, 2.0, 1.0), (1.0, 2.0)]], ids=str)
def test_coefficients_are_triples(coefficients: Any) -> None:
    params = [Parameter(torch.zeros(3, 4))]
    with pytest.raises(ValueError, match="Coefficients must be a tuple of exactly 3 values"):
        fusedopt.Muon([{"params": params, "ns_coefficients": coefficients}])
    optimizer = fusedopt.Muon(params)
    optimizer.param_groups[0]["ns_coefficients"] = coefficients
    params[0].grad = torch.ones(3, 4)
    with pytest.raises(ValueError, match="Coefficients must be a tuple of exactly 3 values"):
        optimizer.step()


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_torchs_rule_has_torchs_groups(case: Any) -> None:
    """With every argument given as by default."""
    if not case.cls._beyond:
        pytest.skip("it has what torch has")
    optimizer = case.ours([Parameter(torch.zeros(2))], **case.cls._beyond)
    assert optimizer.param_groups[0].keys() == case.torchs([Parameter(torch.zeros(2))]).param_groups[0].keys()


@pytest.mark.parametrize("case", BEYOND, ids=str)
def test_a_file_brings_the_rule_along(case: Any) -> None:
    """Into an optimizer by torch's rule, and out of one: as of all of torch's arguments, those in the file hold."""
    default = {key: value for key, value in case.kwargs.items() if key not in case.cls._beyond}

    def stepped(**kwargs: Any) -> Any:
        optimizer = case.cls([Parameter(torch.ones(5))], **kwargs)
        give(optimizer.param_groups[0]["params"][0], torch.linspace(-1, 1, 5))
        optimizer.step()
        return optimizer

    beyond, plain = stepped(**case.kwargs), stepped(**default)
    for source, target in ((beyond, plain), (plain, beyond)):
        file = save_and_load(source.state_dict())
        other = stepped(**(default if target is plain else case.kwargs))
        other.load_state_dict(file)
        with torch.no_grad():
            other.param_groups[0]["params"][0].copy_(source.param_groups[0]["params"][0])
        again = stepped(**(case.kwargs if source is beyond else default))
        for optimizer in (other, again):
            give(optimizer.param_groups[0]["params"][0], torch.linspace(-1, 1, 5))
            optimizer.step()
        assert_identical(snapshot(other), snapshot(again))


def _leftovers(case: Any) -> Iterator[tuple[str, Any]]:
    sparse = Parameter(torch.ones(3, 2))
    sparse.grad = torch.eye(3, 2).to_sparse(1)
    yield "sparse", case.ours([sparse])
    if case.takes("differentiable"):
        param = Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        yield "differentiable", case.ours([param], differentiable=True)


@pytest.mark.parametrize("case", [case for case in BEYOND if hasattr(torch.optim, case.optimizer)], ids=str)
def test_what_torchs_step_would_leave_out_is_refused(case: Any) -> None:
    for kind, optimizer in _leftovers(case):
        param = optimizer.param_groups[0]["params"][0]
        before = param.detach().clone()
        with pytest.raises(RuntimeError, match=r"param_groups\[0\] has \w+=.*, and torch's own step, .* does not know"):
            optimizer.step()
        assert_identical(param.detach(), before), kind
        assert not optimizer.state


@pytest.mark.parametrize(("value", "error"), [(-0.5, ValueError), ("0.5", TypeError), (math.nan, ValueError)])
@pytest.mark.parametrize("given", ["constructor", "group"])
def test_numbers_are_checked(value: Any, error: type[Exception], given: str) -> None:
    kwargs: dict[str, Any] = {"initial_accumulator_value": value}
    params = [Parameter(torch.zeros(2))]
    with pytest.raises(error, match="initial_accumulator_value"):
        fusedopt.RMSprop(params, **kwargs) if given == "constructor" else fusedopt.RMSprop(
            [{"params": params, **kwargs}]
        )


@pytest.mark.parametrize("storage", ["int8", "int4", "bfloat16", "float16"])
def test_squares_begin_above_zero_in_any_storage(storage: str) -> None:
    param, root = Parameter(torch.ones(5000)), 0.75
    param.grad = torch.full((5000,), root)
    optimizer = fusedopt.RMSprop([param], lr=0.01, initial_accumulator_value=root**2, state_dtype=storage)
    optimizer.step()
    assert torch.allclose(param, torch.tensor(0.99), rtol=0, atol=1e-4)
    squares, scales = (optimizer.state[param].get(key) for key in ("square_avg", "square_avg_scale"))
    if storage.startswith("int"):
        assert squares.dtype == torch.uint8
        assert torch.allclose(_C.decode(squares, scales, param), torch.tensor(root**2), rtol=1e-3)
    else:
        assert squares.dtype == getattr(torch, storage)
