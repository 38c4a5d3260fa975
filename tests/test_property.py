"""Random models and sequences of operations: never further from float64 than torch's for-loop, plus 1 ulp."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from layouts import OF_ONE_SHAPE, OTHERS, Layout, Placed
from oracle import Oracle, ulp_error
from runs import give, leaves
from support import assert_identical, params_of, snapshot
from torch import Tensor
from torch.nn import Parameter

import fusedopt

DECAYS = st.sampled_from([0.0, 0.01, 0.1])
RATES = {"SGD": st.floats(1e-3, 0.1), "RMSprop": st.floats(1e-4, 1e-2), "Adam": st.floats(1e-4, 1e-2)}
EPS = st.sampled_from([1e-8, 1e-6, 1e-3])
MOMENTA = st.sampled_from([0.5, 0.9, 0.99])
ADAM = {
    "lr": RATES["Adam"],
    "betas": st.tuples(st.floats(0.5, 0.95), st.floats(0.8, 0.999)),
    "eps": EPS,
    "weight_decay": DECAYS,
    "amsgrad": st.booleans(),
    "maximize": st.booleans(),
}
KWARGS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "SGD": st.one_of(
        st.fixed_dictionaries({"lr": RATES["SGD"], "weight_decay": DECAYS, "maximize": st.booleans()}),
        st.fixed_dictionaries(
            {"lr": RATES["SGD"], "momentum": MOMENTA, "weight_decay": DECAYS, "nesterov": st.booleans()}
        ),
        st.fixed_dictionaries({"lr": RATES["SGD"], "momentum": MOMENTA, "dampening": st.floats(0, 1)}),
    ),
    "Adam": st.fixed_dictionaries({**ADAM, "decoupled_weight_decay": st.booleans()}),
    "AdamW": st.fixed_dictionaries(ADAM),
    "RMSprop": st.fixed_dictionaries(
        {
            "lr": RATES["RMSprop"],
            "alpha": st.floats(0.7, 0.99),
            "eps": EPS,
            "weight_decay": DECAYS,
            "momentum": st.one_of(st.just(0.0), MOMENTA),
            "centered": st.booleans(),
            "maximize": st.booleans(),
        }
    ),
}
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

    optimizer = ""

    @initialize(data=st.data(), dtype=DTYPES, places=st.lists(PLACES, max_size=4), overflow_first=st.booleans())
    def begin(self, data: st.DataObject, dtype: torch.dtype, places: list[Layout], overflow_first: bool) -> None:
        self.kwargs = data.draw(KWARGS[self.optimizer], label="kwargs")
        self.dtype = dtype
        self.layouts: list[Layout] = []
        self.placed: list[Placed] = []
        self.oracles: list[Oracle] = []
        self.largest = torch.zeros((), dtype=torch.float64)
        self.frozen: set[int] = set()
        self.clock, self.laid_out = 0, False
        self.scale: float | None = None
        ours, torchs = self._make([BALLAST, *places], {})
        # Any, because the attributes of torch's GradScaler protocol are declared nowhere.
        self.ours: Any = getattr(fusedopt, self.optimizer)(ours, **self.kwargs)
        self.torchs: torch.optim.Optimizer = getattr(torch.optim, self.optimizer)(torchs, **self.kwargs, foreach=False)
        if overflow_first:
            self.overflow(1.0)

    def _make(self, places: list[Layout], hypers: dict[str, Any]) -> tuple[list[Parameter], list[Parameter]]:
        values = [_random(place.shape, self.dtype, 1000 * self.clock + 500 + i) for i, place in enumerate(places)]
        placed = [place.place(v) for place, v in zip(places, values, strict=True)]
        self.layouts += places
        self.placed += placed
        self.oracles += [Oracle(self.optimizer, {**self.kwargs, **hypers}, [v]) for v in values]
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
    @rule(places=st.lists(PLACES, min_size=1, max_size=3), lr=RATES["Adam"], decay=DECAYS)
    def add_param_group(self, places: list[Layout], lr: float, decay: float) -> None:
        hypers = {"lr": lr, "weight_decay": decay}
        ours, torchs = self._make(places, hypers)
        self.ours.add_param_group({"params": ours, **hypers})
        self.torchs.add_param_group({"params": torchs, **hypers})

    @rule(through_torch=st.booleans())
    def save_and_load(self, through_torch: bool) -> None:
        for module in (torch.optim, fusedopt) if through_torch else (fusedopt,):
            groups = [{"params": group["params"]} for group in self.ours.param_groups]
            loaded = getattr(module, self.optimizer)(groups, **self.kwargs)
            loaded.load_state_dict(copy.deepcopy(self.ours.state_dict()))
            self.ours = loaded

    @rule(data=st.data(), key=st.sampled_from(["lr", "weight_decay", "momentum"]))
    def edit_a_group(self, data: st.DataObject, key: str) -> None:
        groups = self.ours.param_groups
        index = data.draw(st.integers(0, len(groups) - 1), label="group")
        # A momentum of 0 keeps no buffer: RMSprop makes it with the other states, so torch's cannot change its mind.
        if not groups[index].get(key, 0) and key == "momentum":
            return
        values = {"lr": RATES["Adam"], "weight_decay": DECAYS, "momentum": MOMENTA}[key]
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
        for placed in getattr(self, "placed", []):
            placed.assert_others_untouched()


def _case(name: str) -> Any:
    machine: Any = type(f"Run{name}", (Run,), {"optimizer": name})
    machine.TestCase.settings = settings(
        deadline=None,
        max_examples=100,
        stateful_step_count=16,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return machine.TestCase


TestSGD = _case("SGD")
TestAdam = _case("Adam")
TestAdamW = _case("AdamW")
TestRMSprop = _case("RMSprop")
