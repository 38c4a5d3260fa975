"""Steps of more than one pass, captured into a graph: a replay is the step that the CPU takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from adafactor_runs import DTYPES, SHAPES, random
from backends import (
    Backend,
    Twins,
    assert_untouched,
    backend_fixture,  # noqa: F401
    copies,
)
from layouts import OF_ONE_SHAPE
from test_cuda_graphs import replay_steps

import fusedopt


def adafactor(**options: Any) -> Any:
    return lambda params: fusedopt.Adafactor(params, capturable=True, **options)


def halves(build: Callable[[Any], Any]) -> Any:
    """Params in two groups."""
    return lambda params: build([{"params": params[::2]}, {"params": params[1::2]}])


def adafactor_twins(backend: Backend, **options: Any) -> Twins:
    values = [random(shape, dtype) for dtype in DTYPES for shape in (*SHAPES, (0,), (0, 3))]
    values += [layout.place(random(layout.shape)).tensor for layout in OF_ONE_SHAPE]
    twins = Twins(backend, halves(adafactor(weight_decay=0.1, **options)), values)
    twins.train(2)
    return twins


def test_adafactor(backend: Backend) -> None:
    """Of all storages and shapes together, for some params without a gradient."""
    twins = adafactor_twins(backend)
    twins.give([None if i % 7 == 3 else random(p.shape, p.dtype) for i, p in enumerate(twins.cpu_params)])
    before = copies(twins.ours)
    replay = backend.capture(twins.ours.step)
    assert_untouched(twins.ours, before)
    replay_steps(twins, replay)


@pytest.mark.parametrize("options", [{"ema_decay": 0.9}, {"master_weights": "float32"}, {"rounding": "kahan"}], ids=str)
def test_adafactor_with_options(backend: Backend, options: dict[str, Any]) -> None:
    values = [random(shape, dtype) for dtype in DTYPES[2:] for shape in ((70, 1030), (9,), (3, 5, 7))]
    twins = Twins(backend, adafactor(**options), values)
    twins.train(2)
    replay_steps(twins, backend.capture(twins.ours.step))


def test_adafactor_reads_refreshed_numbers(backend: Backend) -> None:
    twins = adafactor_twins(backend)
    replay = backend.capture(twins.ours.step)
    for step in range(3):
        replay_steps(twins, replay, 1)
        twins.set_lr(0.02 / (step + 1))
        twins.edit(lambda o, _: o.param_groups[1].update(d=1.5 + step, eps=(1e-4, 1e-2), maximize=step == 1))  # noqa: B023
        twins.ours.refresh_hyperparameters()
        replay_steps(twins, replay, 2)


def test_steps_between_replays_of_adafactor(backend: Backend) -> None:
    twins = adafactor_twins(backend)
    replay = backend.capture(twins.ours.step)
    static = [q.grad for q in twins.params]
    for _ in range(2):
        replay_steps(twins, replay, 2)
        twins.train(2)
        for p, q, grad in zip(twins.cpu_params, twins.params, static, strict=True):
            q.grad = grad
            p.grad = random(p.shape, p.dtype)


def test_an_overflow_makes_a_replay_of_adafactor_nothing(backend: Backend) -> None:
    twins = adafactor_twins(backend)
    twins.set_scaling(0.0, 1.0)
    replay = backend.capture(twins.ours.step)
    for found, scale in ((0.0, 2.0), (1.0, 3.0), (float("nan"), 1.0), (0.0, 0.5)):
        for optimizer, _ in twins.both():
            optimizer.found_inf.fill_(found)
            optimizer.grad_scale.fill_(scale)
        before = copies(twins.ours)
        replay_steps(twins, replay, 2)
        if found != 0:
            assert_untouched(twins.ours, before)


def test_adafactor_without_the_flag(backend: Backend) -> None:
    twins = Twins(backend, lambda params: fusedopt.Adafactor(params), [random((5, 7))])
    assert "capturable" not in twins.ours.param_groups[0]
    twins.train(1)
    twins.give()
    words = "instance of Adafactor but param_groups' capturable is False: construct it with capturable=True"
    with pytest.raises(RuntimeError, match=words):
        backend.capture(twins.ours.step)
    twins.ours.param_groups[0]["capturable"] = True
    twins.ours.step()
    twins.step_cpu()
    replay_steps(twins, backend.capture(twins.ours.step))
