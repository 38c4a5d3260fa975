"""Defects of torch's optimizers, each shown on torch's own class where it can run, and that ours do not have them.

docs/compatibility.md says which torch has which; under each of these the other half of a test holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, ONE_PER_TWIN, Case
from support import (
    COUNTERS,
    assert_close,
    assert_identical,
    clone_params,
    give_grads,
    make_params,
    outcome,
    params_of,
    save_and_load,
    snapshot,
    stands,
    train,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import fusedopt


def stock(case: Case, params: Any) -> Any:
    """torch's fused optimizer, where it has one."""
    return case.torchs(params, foreach=None, fused=True)


def has_stock(case: Case) -> bool:
    return case.torch_takes("fused")


def check(defect: str, is_there: Callable[[], bool]) -> None:
    """Of torch's class: that the defect is where docs/compatibility.md has it."""
    if (expected := stands(defect)) is not None:
        assert is_there() == expected, f"docs/compatibility.md: {defect} {expected} in torch {torch.__version__}"


def raises(act: Callable[[], Any], error: type[Exception] = RuntimeError) -> bool:
    try:
        act()
    except error:
        return True
    return False


def differs(actual: Optimizer, expected: Optimizer) -> bool:
    return raises(lambda: assert_close(actual, expected), AssertionError)


def overflow(optimizer: Any, found: float = 1.0) -> None:
    """One step as GradScaler drives it after it has seen an infinite gradient."""
    for p in params_of(optimizer):
        p.grad = torch.full_like(p, float("inf"))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(found)
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf


def test_a_momentum_survives_an_overflow_on_the_first_step() -> None:
    ours, torchs = fusedopt.SGD(make_params(), 0.1, 0.9), torch.optim.SGD(make_params(), 0.1, 0.9, foreach=False)
    overflow(ours)
    assert len(ours.state) == 0
    train(ours)
    train(torchs)
    assert_close(ours, torchs)
    # A buffer of uninitialised memory stays behind.
    faulty = torch.optim.SGD(make_params(), 0.1, 0.9, fused=True)
    overflow(faulty)
    check("a", lambda: "momentum_buffer" in faulty.state[params_of(faulty)[0]])


@pytest.mark.parametrize("found", [2.0, float("nan")])
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_b_any_found_inf_but_zero_skips(case: Case, found: float) -> None:
    ours = case.ours(make_params())
    train(ours)
    before = snapshot(ours)
    overflow(ours, found)
    assert_identical(snapshot(ours), before)
    if has_stock(case):  # the kernel compares with 1
        faulty = stock(case, make_params())
        train(faulty)
        overflow(faulty, found)
        check("b", lambda: not params_of(faulty)[0].isfinite().all())


def _transposed() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 8), torch.randn(8, 6).t()


def _expanded() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 8), torch.randn(6, 8)[:1].expand(6, 8)  # torch's kernel reads on, but inside the storage


def _strided() -> tuple[Tensor, Tensor]:
    return torch.randn(48)[::2], torch.randn(24)


@pytest.mark.parametrize("layout", [_transposed, _expanded, _strided], ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_c_strides_are_respected(case: Case, layout: Any) -> None:
    data, grad = layout()
    neighbours = torch.as_strided(data, (47,), (1,), 0).clone()[1::2]

    def run(make: Any) -> tuple[Optimizer, Tensor]:
        storage = torch.as_strided(data, (47,) if data.ndim == 1 else data.shape, (1,) if data.ndim == 1 else (8, 1))
        storage = storage.clone()
        p = Parameter(storage[::2] if data.ndim == 1 else storage)
        optimizer = make([p])
        for _ in range(2):
            p.grad = grad
            optimizer.step()
        return optimizer, storage

    ours, storage = run(case.ours)
    torchs, _ = run(case.torchs)
    assert_close(ours, torchs)
    if data.ndim == 1:
        assert_identical(storage[1::2], neighbours)
    if has_stock(case):
        faulty, storage = run(lambda params: stock(case, params))
        check("c", lambda: differs(faulty, torchs))
        if data.ndim == 1:
            check("c", lambda: not torch.equal(storage[1::2], neighbours))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_d_a_first_gradient_after_the_first_step(case: Case) -> None:
    def run(make: Any) -> Optimizer:
        optimizer: Optimizer = make(make_params())
        for i in range(3):
            give_grads(params_of(optimizer), i)
            if i == 0:
                params_of(optimizer)[0].grad = None
            optimizer.step()
        return optimizer

    assert_close(run(case.ours), run(case.torchs))
    if case.optimizer == "SGD":
        check("d", lambda: raises(lambda: run(lambda params: stock(case, params)), TypeError))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_e_a_non_fused_checkpoint_keeps_amp_working(case: Case) -> None:
    torchs = case.torchs(make_params())
    train(torchs)
    file = save_and_load(torchs.state_dict())
    ours: Any = case.ours(clone_params(params_of(torchs)), fused=True)
    ours.load_state_dict(file)
    train(torchs, 1, first=3)
    for optimizer in [ours, *([stock(case, make_params())] if has_stock(case) else [])]:
        optimizer.load_state_dict(file)
        give_grads(params_of(optimizer), 3)
        for p in params_of(optimizer):
            p.grad.mul_(8)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        if optimizer is ours:
            optimizer.step()
            assert_close(ours, torchs)
        else:
            check("e", lambda: raises(optimizer.step, AssertionError))  # noqa: B023


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs gloo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("case", ONE_PER_TWIN, ids=str)
def test_f_sharded_params_step(case: Case) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))

    def run(make: Any, shard: bool) -> list[Tensor]:
        data = [p.detach() for p in make_params([(8, 3), (8,)])]
        params = [Parameter(distribute_tensor(t, mesh, [Shard(0)]) if shard else t) for t in data]
        optimizer = make(params)
        for i in range(3):
            give_grads(data, i)
            for p, t in zip(params, data, strict=True):
                p.grad = distribute_tensor(t.grad, mesh, [Shard(0)]) if shard else t.grad
            optimizer.step()
        return [p.full_tensor() if shard else p for p in params]

    results = [outcome(lambda: run(make, True)) for make in (case.ours, case.torchs)]  # noqa: B023
    if results[0] is not None:  # torch's Rprop does not know how either
        assert results[0] == results[1]
        return
    for p, q in zip(run(case.ours, True), run(case.torchs, False), strict=True):
        torch.testing.assert_close(p, q)
    if case.optimizer in ("SGD", "Adagrad"):  # NotImplementedError, or what tracing the missing kernel raises
        check("f", lambda: raises(lambda: run(lambda params: stock(case, params), True)))


def _float32_state(optimizer: Optimizer) -> None:
    for p in params_of(optimizer):
        for key, value in optimizer.state[p].items():
            optimizer.state[p][key] = value.float() + (0 if key in COUNTERS else 2.0**-12)  # lost in bfloat16


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_g_loading_keeps_float32_state_of_a_bfloat16_param(case: Case) -> None:
    def run(make: Any) -> tuple[Optimizer, Optimizer]:
        saved = make(make_params([(67,)], dtype=torch.bfloat16))
        train(saved, 1)
        _float32_state(saved)
        loaded = make(clone_params(params_of(saved)))
        loaded.load_state_dict(save_and_load(saved.state_dict()))
        return saved, loaded

    saved, loaded = run(case.ours)
    assert_identical(loaded.state_dict()["state"], saved.state_dict()["state"])
    train(saved, 2, first=1)
    train(loaded, 2, first=1)
    assert_identical(snapshot(loaded), snapshot(saved))
    assert {t.dtype for t in loaded.state[params_of(loaded)[0]].values()} == {torch.float32}
    _, faulty = run(case.torchs)
    check("g", lambda: torch.bfloat16 in {t.dtype for t in faulty.state[params_of(faulty)[0]].values()})


@pytest.mark.parametrize("mix", ["float32-param-bfloat16-grad", "bfloat16-param-float32-state"])
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_h_mixed_dtypes(case: Case, mix: str) -> None:
    def run(make: Any) -> Optimizer:
        low_param = mix.startswith("bfloat16")
        optimizer: Optimizer = make(make_params([(67,)], dtype=torch.bfloat16 if low_param else torch.float32))
        p = params_of(optimizer)[0]
        for i in range(3):
            give_grads([p], i)
            if not low_param:
                if not hasattr(p, "grad_dtype"):
                    pytest.skip("this torch ties a gradient to its param's dtype")
                grad, p.grad, p.grad_dtype = p.grad.bfloat16(), None, None
                p.grad = grad
            optimizer.step()
            if i == 0 and low_param:
                _float32_state(optimizer)
        return optimizer

    ours = params_of(run(case.ours))[0]
    # The same numbers, widened beforehand: what mixed storage must come to.
    wide = case.torchs([Parameter(p.detach().float()) for p in make_params([(67,)], dtype=ours.dtype)])
    for i in range(3):
        p = params_of(wide)[0]
        give_grads([p], i)
        p.grad = p.grad.bfloat16().float()
        wide.step()
        with torch.no_grad():
            p.copy_(p.to(ours.dtype))
        if i == 0 and ours.dtype is torch.bfloat16:
            for key, value in wide.state[p].items():
                wide.state[p][key] = value.bfloat16().float() + 2.0**-12 if key not in COUNTERS else value
    torch.testing.assert_close(ours, params_of(wide)[0].to(ours.dtype))
    if has_stock(case):
        check("h", lambda: raises(lambda: run(lambda params: stock(case, params))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_i_every_element_of_a_16_bit_tensor_moves(dtype: torch.dtype) -> None:
    def run(cls: Any, **kwargs: Any) -> Tensor:
        p = Parameter(torch.ones(67, dtype=dtype))
        p.grad = torch.ones_like(p)
        cls([p], lr=0.5, **kwargs).step()
        return p.detach()

    assert_identical(run(fusedopt.SGD), torch.full((67,), 0.5, dtype=dtype))
    check("i", lambda: bool((run(torch.optim.SGD, fused=True) == 1.0).any()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_j_equal_inputs_give_equal_outputs_everywhere_in_a_tensor(case: Case, dtype: torch.dtype) -> None:
    def most_distinct(make: Any) -> int:
        """The number of distinct results that 67 equal elements come to, at worst over 15 runs."""
        generator = torch.Generator().manual_seed(0)
        worst = 1
        for _ in range(15):
            p = Parameter(torch.randn(1, generator=generator).expand(67).to(dtype).contiguous())
            optimizer = make([p])
            for _ in range(3):
                p.grad = torch.randn(1, generator=generator).expand(67).to(dtype).contiguous()
                optimizer.step()
            states = [value for key, value in optimizer.state[p].items() if key not in COUNTERS]
            worst = max(worst, *(len(t.detach().unique()) for t in [p, *states]))
        return worst

    assert most_distinct(case.ours) == 1
    # Of 16 bits only its SGD had it, and its Adagrad rounds alike in both.
    low = dtype is torch.bfloat16
    if _simd() and has_stock(case) and case.optimizer != "Adagrad" and (not low or case.optimizer == "SGD"):
        check("j16" if low else "j", lambda: most_distinct(lambda params: stock(case, params)) > 1)


def _simd() -> bool:
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_k_strides_of_a_dimension_of_size_one_do_not_matter(case: Case) -> None:
    # torch's CUDA kernel raises; on the CPU the strides below must change no bit.
    def run(param_strides: tuple[int, ...], grad_strides: tuple[int, ...]) -> Optimizer:
        p = Parameter(torch.empty_strided((8, 1, 1), param_strides).copy_(torch.arange(8.0).reshape(8, 1, 1)))
        optimizer = case.ours([p])
        for _ in range(2):
            p.grad = torch.empty_strided((8, 1, 1), grad_strides).copy_(torch.ones(8, 1, 1))
            optimizer.step()
        return optimizer

    expected = snapshot(run((1, 1, 1), (1, 1, 1)))
    for strides in [((1, 1, 1), (1, 8, 8)), ((1, 8, 1), (1, 1, 1)), ((1, 5, 9), (1, 9, 5))]:
        assert_identical(snapshot(run(*strides)), expected)


# l: tensors of more than 2^31 elements are in the layout tests, marked as large.


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_n_momentum_is_not_what_it_was_made_orthogonal_in() -> None:
    def momentum(cls: Any) -> Tensor:
        p = Parameter(torch.zeros(8, 4, dtype=torch.bfloat16))
        optimizer = cls([p], nesterov=False, momentum=0.5)
        p.grad = torch.full_like(p, 3.0)
        optimizer.step()
        found: Tensor = optimizer.state[p]["momentum_buffer"]
        return found

    assert_identical(momentum(fusedopt.Muon), torch.full((8, 4), 1.5, dtype=torch.bfloat16))
    check("n", lambda: not torch.equal(momentum(torch.optim.Muon), torch.full((8, 4), 1.5, dtype=torch.bfloat16)))


@pytest.mark.usefixtures("process_group")
def test_o_adafactor_steps_what_a_process_has_all_of() -> None:
    """What it does with shards, and torch's class with vectors, takes two processes: tests/sharded_sums.py."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))

    def step(cls: Any) -> None:
        p, grad = (distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)]) for _ in range(2))
        param = Parameter(p)
        param.grad = grad
        cls([param]).step()

    step(fusedopt.Adafactor)
    check("o", lambda: raises(lambda: step(torch.optim.Adafactor)))
