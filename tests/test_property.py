"""Random models and sequences of operations: never further from float64 than torch's for-loop, plus 1 ulp.

Without --all a seventh of them, and on the emulator, to whose bits the CPU's are held, half of these.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import tiers
import torch
from cases import ONE_PER_APART, Case
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from layouts import OF_ONE_SHAPE, OTHERS, Layout, Placed
from oracle import Oracle, ulp_error
from runs import give, leaves
from support import EMULATED, assert_identical, params_of, snapshot
from torch import Tensor
from torch.nn import Parameter

DECAYS = st.sampled_from([0.0, 0.01, 0.1])
MOMENTA = st.sampled_from([0.5, 0.9, 0.99])
BETA1, BETA = st.floats(0.5, 0.95), st.floats(0.8, 0.999)
# For every argument of every optimizer; flags are drawn without being listed.
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "weight_decay": DECAYS,
    "eps": st.sampled_from([1e-8, 1e-6, 1e-3]),
    "betas": st.tuples(BETA1, BETA, BETA),
    "momentum": st.one_of(st.just(0.0), MOMENTA),
    "dampening": st.one_of(st.just(0.0), st.floats(0, 1)),
    "alpha": st.floats(0.7, 0.99),
    "rho": st.floats(0.7, 0.99),
    "lr_decay": DECAYS,
    "initial_accumulator_value": st.sampled_from([0.0, 0.25]),
    "momentum_decay": st.sampled_from([0.0, 4e-3, 0.3]),
    "lambd": st.sampled_from([0.0, 1e-4, 0.1]),
    "t0": st.sampled_from([0.0, 3.0, 1e6]),
    "etas": st.tuples(st.floats(0.3, 0.9), st.floats(1.05, 1.7)),
    "step_sizes": st.tuples(st.floats(1e-5, 1e-3), st.floats(0.02, 0.2)),
    "t_alpha": st.sampled_from([None, 0, 5]),
    "t_beta3": st.sampled_from([None, 0, 5]),
    "clip_exp": st.sampled_from([None, 0.0, 0.25, 1.0]),
    "gamma": st.sampled_from([0.0, 0.025, 0.3]),
    "a": st.floats(0.5, 2),
    "b": st.sampled_from([0.0, 0.5, 1.0]),
    "warmup_steps": st.sampled_from([0, 3]),
    "r": st.sampled_from([0.0, 1.0]),
    "weight_lr_power": st.sampled_from([0.0, 2.0]),
    "trust_coeff": st.sampled_from([0.001, 0.02]),
}
# They step by a sign, which a rounding can turn: in 16 bits two good runs come to differ by more than roundings.
BY_SIGN = ("Lion", "Rprop")


def rates(case: Case) -> st.SearchStrategy[float]:
    return st.floats(case.kwargs["lr"] / 20, 2 * case.kwargs["lr"])


def arguments(case: Case) -> st.SearchStrategy[dict[str, Any]]:
    drawn: dict[str, st.SearchStrategy[Any]] = {"lr": rates(case)}
    for name, parameter in inspect.signature(case.cls).parameters.items():
        if name in case.cls._beyond:
            continue
        if name in (hyper.partition(".")[0] for hyper in case.rule["hypers"]) and name != "lr":
            flag = isinstance(parameter.default, bool)
            assert flag or name in ARGUMENTS, f"say in ARGUMENTS how {name!r} of {case.optimizer} is drawn"
            drawn[name] = st.booleans() if flag else ARGUMENTS[name]
            if name == "betas":
                count = len(parameter.default)
                drawn[name] = drawn[name].map(lambda betas: betas[:count])  # noqa: B023
    return st.fixed_dictionaries({**drawn, "maximize": st.booleans()}).map(_consistent)


def _consistent(kwargs: dict[str, Any]) -> dict[str, Any]:
    if "weight_lr_power" in kwargs and kwargs.get("momentum") == 0:
        return {**kwargs, "momentum": 0.5}
    if kwargs.get("nesterov") and (kwargs["momentum"] == 0 or kwargs["dampening"] != 0):
        return {**kwargs, "nesterov": False}
    return kwargs


# Contiguous tensors of any small shape, and every layout the engine knows.
PLACES = st.one_of(
    st.lists(st.integers(0, 9), max_size=3).map(lambda shape: Layout("contiguous", tuple(shape), lambda b: b)),
    st.sampled_from([*OF_ONE_SHAPE, *OTHERS]),
)
# An error in a tensor of one element is a matter of luck. Errors are pooled over all params, and this one makes the
# pool large enough for the largest error of two equally good roundings to agree to a fraction of an ulp.
BALLAST = Layout("contiguous", (600,), lambda b: b)
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])


def _random(shape: torch.Size, dtype: torch.dtype, seed: int) -> Tensor:
    """Of either sign and magnitudes from 0.25 to 2: none whose square float16 loses."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (sign * (0.25 + 1.75 * torch.rand(shape, generator=generator, dtype=torch.float64))).to(dtype)


class Run(RuleBasedStateMachine):
    """Ours, torch's for-loop and one oracle per param, taken through the same operations."""

    case: Case

    @initialize(data=st.data(), dtype=DTYPES, places=st.lists(PLACES, max_size=4), overflow_first=st.booleans())
    def begin(self, data: st.DataObject, dtype: torch.dtype, places: list[Layout], overflow_first: bool) -> None:
        self.kwargs = data.draw(arguments(self.case), label="kwargs")
        self.dtype = torch.float32 if self.case.optimizer in BY_SIGN and dtype.itemsize == 2 else dtype
        # Counters follow the default dtype, and the oracle's are doubles.
        torch.set_default_dtype(torch.float64 if self.dtype == torch.float64 else torch.float32)
        self.layouts: list[Layout] = []
        self.placed: list[Placed] = []
        self.oracles: list[Oracle] = []
        self.largest = torch.zeros((), dtype=torch.float64)
        self.frozen: set[int] = set()
        self.clock, self.laid_out = 0, False
        self.scale: float | None = None
        ours, torchs = self._make([BALLAST, *places], {})
        # Any, because the attributes of torch's GradScaler protocol are declared nowhere.
        self.ours: Any = self.case.ours(ours, **self.kwargs)
        self.torchs = self.case.torchs(torchs, **self.kwargs)
        if overflow_first:
            self.overflow(1.0)

    def _make(self, places: list[Layout], hypers: dict[str, Any]) -> tuple[list[Parameter], list[Parameter]]:
        values = [_random(place.shape, self.dtype, 1000 * self.clock + 500 + i) for i, place in enumerate(places)]
        placed = [place.place(v) for place, v in zip(places, values, strict=True)]
        self.layouts += places
        self.placed += placed
        self.oracles += [Oracle(self.case.optimizer, {**self.kwargs, **hypers}, [v]) for v in values]
        return [Parameter(x.tensor) for x in placed], leaves(values)

    def _give_gradients(self, scale: float) -> list[Tensor | None]:
        grads: list[Tensor | None] = []
        for i, (p, q) in enumerate(zip(params_of(self.ours), params_of(self.torchs), strict=True)):
            grad = None if i in self.frozen else _random(p.shape, self.dtype, 1000 * self.clock + i)
            grads.append(grad)
            q.grad = grad
            scaled = None if grad is None else grad * scale
            give(p, self.layouts[i].place(scaled).tensor if scaled is not None and self.laid_out else scaled)
        return grads

    @invariant()
    def a_step_follows_every_operation(self) -> None:
        self.clock += 1
        grads = self._give_gradients(self.scale or 1.0)
        if self.scale is not None:
            self.ours.grad_scale, self.ours.found_inf = torch.tensor(self.scale), torch.tensor(0.0)
        self.ours.step()
        if self.scale is not None:
            del self.ours.grad_scale, self.ours.found_inf
        self.torchs.step()
        for oracle, grad in zip(self.oracles, grads, strict=True):
            oracle.step([grad])
        self._compare()

    @rule(scale=st.sampled_from([None, 1.0, 2.0**8]), laid_out=st.booleans())
    def scale_and_lay_out_gradients(self, scale: float | None, laid_out: bool) -> None:
        self.scale, self.laid_out = scale, laid_out

    @rule(found=st.sampled_from([1.0, 2.0]))
    def overflow(self, found: float) -> None:
        self._give_gradients(float("inf"))
        before = snapshot(self.ours)
        self.ours.grad_scale, self.ours.found_inf = torch.tensor(2.0**16), torch.tensor(found)
        self.ours.step()
        del self.ours.grad_scale, self.ours.found_inf
        assert_identical(snapshot(self.ours), before)

    @rule(data=st.data())
    def freeze_or_unfreeze(self, data: st.DataObject) -> None:
        # The ballast stays, so that there is always something to compare.
        if len(self.placed) > 1:
            self.frozen ^= {data.draw(st.integers(1, len(self.placed) - 1), label="param")}

    @precondition(lambda self: len(self.placed) < 12)
    @rule(places=st.lists(PLACES, min_size=1, max_size=3), data=st.data(), decay=DECAYS)
    def add_param_group(self, places: list[Layout], data: st.DataObject, decay: float) -> None:
        hypers = {"lr": data.draw(rates(self.case), label="lr")}
        if self.case.takes("weight_decay"):
            hypers["weight_decay"] = decay
        ours, torchs = self._make(places, hypers)
        self.ours.add_param_group({"params": ours, **hypers})
        self.torchs.add_param_group({"params": torchs, **hypers})

    @rule(through_torch=st.booleans())
    def save_and_load(self, through_torch: bool) -> None:
        for make in (self.case.torchs, self.case.ours) if through_torch else (self.case.ours,):
            groups = [{"params": group["params"]} for group in self.ours.param_groups]
            loaded = make(groups, **self.kwargs)
            loaded.load_state_dict(copy.deepcopy(self.ours.state_dict()))
            self.ours = loaded

    @rule(data=st.data(), key=st.sampled_from(["lr", "weight_decay", "momentum"]))
    def edit_a_group(self, data: st.DataObject, key: str) -> None:
        groups = self.ours.param_groups
        index = data.draw(st.integers(0, len(groups) - 1), label="group")
        # A momentum of 0 keeps no buffer: RMSprop makes it with the other states, so torch's cannot change its mind.
        if key not in groups[index] or (groups[index][key] == 0 and key == "momentum"):
            return
        values = {"lr": rates(self.case), "weight_decay": DECAYS, "momentum": MOMENTA}[key]
        value = data.draw(values, label=key)
        groups[index][key] = self.torchs.param_groups[index][key] = value
        first = sum(len(group["params"]) for group in groups[:index])
        for oracle in self.oracles[first : first + len(groups[index]["params"])]:
            oracle.hypers[key] = value

    def _compare(self) -> None:
        """The largest error over all params, in ulps of the largest magnitude that any of them has had.

        An element that has just come close to zero carries the error of its past, hence the common unit. Every step
        rounds by up to half an ulp to a side that is a matter of luck, so after n steps two equally good runs differ by
        some sqrt(n) / 2 ulps; that a single step adds at most one to torch's error, the parity tests hold elementwise.
        """
        ours, torchs = params_of(self.ours), params_of(self.torchs)
        expected = [oracle.params[0] for oracle in self.oracles]
        if self.dtype == torch.float64:
            # The oracle rounds like both, so its distance no longer tells which is closer.
            torch.testing.assert_close([p.detach() for p in ours], expected, rtol=1e-11, atol=1e-11)
            return
        flat = torch.cat([e.flatten() for e in expected])
        self.largest = torch.maximum(self.largest, flat.abs().max())
        errors = [
            ulp_error(torch.cat([p.detach().flatten() for p in params]), flat, self.largest.expand_as(flat)).max()
            for params in (ours, torchs)
        ]
        assert errors[0] <= errors[1] + 1 + self.clock**0.5 / 2

    def teardown(self) -> None:
        torch.set_default_dtype(torch.float32)
        for placed in getattr(self, "placed", []):
            placed.assert_others_untouched()


def _test(case: Case) -> Any:
    machine: Any = type(f"Run{case.optimizer}", (Run,), {"case": case})
    machine.TestCase.settings = settings(
        deadline=None,
        max_examples=60 if tiers.everything else 4 if EMULATED else 8,
        stateful_step_count=16,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return machine.TestCase


# Groups draw numbers of their own. On the emulator one of a kind is enough, as everywhere.
DRAWN = [case for case in ONE_PER_APART if tiers.everything or not EMULATED or tiers.of_a_kind(case)]
globals().update({f"Test{case.optimizer}": _test(case) for case in DRAWN})
