"""Adafactor's CUDA kernels have the bits of the CPU's, wait for nothing and launch few kernels."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from adafactor_runs import DTYPES, OPTIONS, SHAPES, random
from backends import (  # noqa: F401
    Backend,
    Emulated,
    backend_fixture,
    emulated_fixture,
    spread,
)
from layouts import OF_ONE_SHAPE, OTHERS
from test_adafactor import SPECIAL
from tiers import thinned
from twins import Twins

import fusedopt

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def adafactor(**options: Any) -> Any:
    return lambda params: fusedopt.Adafactor(params, **options)


@thinned("what options do and how numbers are stored are two things", keep=lambda dtype: dtype == torch.float32)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_option
def test_every_shape(backend: Backend, options: dict[str, Any], dtype: torch.dtype) -> None:
    twins = Twins(backend, adafactor(**options), [random(shape, dtype) for shape in (*SHAPES, (0,), (0, 3), (3, 0))])
    twins.train()


@every_option
def test_numbers_over_many_orders_of_magnitude(backend: Backend, options: dict[str, Any]) -> None:
    Twins(backend, adafactor(**options), [spread(*shape) for shape in SHAPES]).train()


def test_every_mix_of_storages(backend: Backend) -> None:
    shapes = [(70, 30), (2100,)]
    mixes = list(product(DTYPES, DTYPES, DTYPES, shapes))
    twins = Twins(backend, adafactor(weight_decay=0.1), [random(shape, p) for p, _, _, shape in mixes])
    for step in range(3):
        twins.step([random(shape, g) for _, g, _, shape in mixes])
        twins.check()
        if step == 0:
            twins.set_states(lambda i, k, state: state.to(mixes[i][2]))


def test_layouts(backend: Backend) -> None:
    pairs = [*product(OF_ONE_SHAPE, OF_ONE_SHAPE), *((x, x) for x in OTHERS)]
    twins = Twins(backend, adafactor(), [a.place(random(a.shape)).tensor for a, _ in pairs])
    for _ in range(3):
        twins.step([b.place(random(b.shape)).tensor for _, b in pairs])
        twins.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(backend: Backend, dtype: torch.dtype) -> None:
    values = [v for v in SPECIAL if abs(v) <= torch.finfo(dtype).max or not torch.tensor(v).isfinite()]
    shapes = [(9, 5), (1100,), (70, 1030)]
    twins = Twins(backend, adafactor(), [random(shape, dtype) for _ in values for shape in shapes])
    for _ in range(3):
        grads = [random(shape, dtype) for _ in values for shape in shapes]
        for i, value in enumerate(values):
            for grad in grads[3 * i : 3 * i + 3]:
                grad.view(-1)[3] = value
        twins.step(grads)
        twins.check()


@pytest.mark.parametrize("there", [True, False], ids=["device", "host"])
def test_gradscaler_and_learning_rates_on_the_device(backend: Backend, there: bool) -> None:
    """A first skipped step makes no state; later ones are skipped by the device alone, which then counts."""
    backend.numbers_on_device(there)
    twins = Twins(backend, adafactor(weight_decay=0.1), [random(shape) for shape in SHAPES])
    for found in (1.0, 0.0, 0.0, 2.0, float("nan"), 0.0, 1.0, 0.0):
        twins.set_scaling(found, 8.0)
        twins.edit(lambda o, _: o.param_groups[0].update(lr=0.02))
        twins.step()
        assert bool(twins.ours.step_skipped) == (found != 0)
        twins.check()
    twins.set_scaling(None)
    twins.train(2)


def test_a_learning_rate_on_the_device(backend: Backend) -> None:
    twins = Twins(backend, adafactor(), [random(shape) for shape in SHAPES])
    for step in range(4):
        twins.cpu.param_groups[0]["lr"] = torch.tensor(0.01 / (step + 1))
        twins.ours.param_groups[0]["lr"] = backend.number(0.01 / (step + 1))
        twins.step()
        twins.check()


def test_a_step_is_six_launches_and_nothing_else(backend: Backend) -> None:
    twins = Twins(backend, adafactor(), [random(shape) for shape in SHAPES])
    twins.train(2)
    twins.give()
    twins.step_twice_in_steady_state(launches=6)


@pytest.mark.parametrize("seed", range(1, 5))
def test_blocks_and_threads_run_in_any_order(emulated: Emulated, seed: int) -> None:
    twins = Twins(emulated, adafactor(), [random(shape) for shape in SHAPES])
    emulated.control.set_seed(seed)
    twins.train(2)


def test_a_thread_of_the_system_for_each_of_the_device(emulated: Emulated) -> None:
    emulated.control.use_threads(True)
    Twins(emulated, adafactor(), [random(shape) for shape in ((5, 7), (70, 1030), (20, 3, 3), (1100,))]).train(1)
