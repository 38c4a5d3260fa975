"""The table that drives the suite: one `Case` per variant of an optimizer, named as torch.optim names it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import references
import torch
from torch.nn import Parameter

import fusedopt
from fusedopt import _C


@dataclass(frozen=True)
class Case:
    """One optimizer with one set of arguments, buildable as ours, as torch's for-loop and as any torch variant."""

    name: str
    optimizer: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> Any:
        return getattr(fusedopt, self.optimizer)

    @property
    def has_twin(self) -> bool:
        """Whether torch has a class with this rule; of the others a reference stands in for it."""
        return hasattr(torch.optim, self.optimizer) and not self.goes_beyond

    @property
    def goes_beyond(self) -> bool:
        """Whether torch's class of this name, or the reference where torch has none, lacks one of the arguments."""
        return bool(getattr(self.cls, "_beyond", {}).keys() & self.kwargs.keys())

    @property
    def rule(self) -> dict[str, Any]:
        """The names that the rule gives its hyper-parameters, states and counters."""
        return _C.rules()[self.cls._rule]

    @property
    def joint(self) -> bool:
        """Whether its sums are over all params, so that groups cannot differ in what is for all."""
        return _C.joint(self.cls._rule)

    def own(self, lr: float) -> dict[str, Any]:
        """What a group may have for itself: a learning rate, if that is not for all."""
        return {"weight_decay": 0.3} if self.joint else {"lr": lr}

    def takes(self, argument: str) -> bool:
        """Whether the constructor has this argument."""
        return argument in inspect.signature(self.cls).parameters

    def torch_takes(self, argument: str) -> bool:
        """Whether the constructor of torch's class has it: ours takes `foreach` and `fused` everywhere."""
        return self.has_twin and argument in inspect.signature(getattr(torch.optim, self.optimizer)).parameters

    def takes_tensor(self, argument: str) -> bool:
        """Whether torch says that it may be one."""
        parameter = inspect.signature(self.cls).parameters.get(argument)
        return parameter is not None and "Tensor" in str(parameter.annotation)

    @property
    def states(self) -> list[str]:
        """The keys of what is shaped like the param."""
        return [key for key in self.kept if key not in self.rule["counters"]]

    @property
    def counters(self) -> list[str]:
        return list(self.rule["counters"])

    @cached_property
    def starts_with_state(self) -> bool:
        """Whether the constructor makes states."""
        return bool(self.ours([Parameter(torch.zeros(1))]).state)

    @cached_property
    def kept(self) -> list[str]:
        """The keys of a param's state."""
        param = Parameter(torch.zeros(1))
        param.grad = torch.ones(1)
        optimizer = self.ours([param])
        optimizer.step()
        return list(optimizer.state.get(param, {}))

    @cached_property
    def elementwise(self) -> bool:
        """Whether an element's step depends on that element alone, and not on norms of the tensor."""
        ends = []
        for neighbour in (1.0, 3.0):
            param = Parameter(torch.tensor([1.0, neighbour]))
            optimizer = self.ours([param])
            # Some look at norms once updates have grown, some at whether gradients agree with averages of them.
            for grads in ((1.0, 0.5), (100.0, 0.5 * neighbour), (100.0, 50.0 * neighbour), (1.0, 2.0 - neighbour)):
                param.grad = torch.tensor(grads)
                optimizer.step()
            ends.append(param[0].item())
        return ends[0] == ends[1]

    @cached_property
    def param_enters_state(self) -> bool:
        """Whether states depend on the param that is stepped, as through an L2 penalty."""
        made = []
        for start in (1.0, 2.0):
            param = Parameter(torch.full((1,), start))
            param.grad = torch.ones(1)
            optimizer = self.ours([param])
            optimizer.step()
            made.append([optimizer.state[param][key].item() for key in self.states])
        return made[0] != made[1]

    def ours(self, params: Iterable[Any], **extra: Any) -> torch.optim.Optimizer:
        cls: Callable[..., torch.optim.Optimizer] = self.cls
        return cls(params, **{**self.kwargs, **extra})

    def torchs(self, params: Iterable[Any], **extra: Any) -> torch.optim.Optimizer:
        """torch's for-loop unless `extra` asks for foreach or fused."""
        cls: Callable[..., torch.optim.Optimizer] = references.twin(self.optimizer, self.kwargs)
        return cls(params, **{**self.kwargs, "foreach": False, **extra})

    def __str__(self) -> str:
        return self.name


def _case(optimizer: str, suffix: str = "", **kwargs: Any) -> Case:
    return Case(f"{optimizer.lower()}{'-' + suffix if suffix else ''}", optimizer, kwargs)


CASES = [
    _case("SGD", lr=0.05),
    _case("SGD", "decay", lr=0.05, weight_decay=0.1),
    _case("SGD", "maximize", lr=0.05, maximize=True),
    _case("SGD", "momentum", lr=0.05, momentum=0.9),
    _case("SGD", "dampening", lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.02),
    _case("SGD", "nesterov", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.02),
    _case("SGD", "nesterov-maximize", lr=0.05, momentum=0.7, nesterov=True, maximize=True),
    _case("SGD", "decoupled", lr=0.05, momentum=0.7, nesterov=True, weight_decay=0.1, decoupled_weight_decay=True),
    _case("Adam", lr=2e-3),
    _case("Adam", "decay", lr=2e-3, weight_decay=0.1),
    _case("Adam", "amsgrad", lr=2e-3, amsgrad=True, weight_decay=0.01),
    _case("Adam", "maximize", lr=2e-3, maximize=True, weight_decay=0.01),
    _case("Adam", "betas", lr=2e-3, betas=(0.3, 0.6), eps=1e-6),
    _case("Adam", "decoupled", lr=2e-3, weight_decay=0.1, decoupled_weight_decay=True),
    _case("Adam", "uncorrected", lr=2e-3, betas=(0.6, 0.8), weight_decay=0.1, bias_correction=False),
    _case("Adam", "caution", lr=2e-3, betas=(0.6, 0.8), weight_decay=0.1, caution=True, maximize=True),
    _case("AdamW", lr=2e-3),
    _case("AdamW", "caution", lr=2e-3, weight_decay=0.1, caution=True),
    _case("AdamW", "caution-amsgrad", lr=2e-3, betas=(0.6, 0.8), amsgrad=True, bias_correction=False, caution=True),
    _case("AdamW", "uncorrected", lr=2e-3, amsgrad=True, betas=(0.6, 0.8), bias_correction=False),
    _case("AdamW", "amsgrad", lr=2e-3, amsgrad=True),
    _case("AdamW", "amsgrad-maximize", lr=2e-3, amsgrad=True, maximize=True, weight_decay=0.1),
    _case("RMSprop", lr=2e-3),
    _case("RMSprop", "decay", lr=2e-3, eps=1e-6, weight_decay=0.1),
    _case("RMSprop", "momentum", lr=2e-3, momentum=0.9),
    _case("RMSprop", "centered", lr=2e-3, centered=True, alpha=0.9),
    _case("RMSprop", "centered-momentum", lr=2e-3, centered=True, momentum=0.8, maximize=True, weight_decay=0.01),
    _case(
        "RMSprop",
        "tensorflow",
        lr=2e-3,
        alpha=0.9,
        eps=1e-3,
        momentum=0.9,
        initial_accumulator_value=1.0,
        eps_in_sqrt=True,
        lr_in_momentum=True,
        weight_decay=0.1,
        decoupled_weight_decay=True,
    ),
    _case(
        "RMSprop",
        "tensorflow-centered",
        lr=2e-3,
        eps=1e-3,
        centered=True,
        initial_accumulator_value=1.0,
        eps_in_sqrt=True,
    ),
    _case("Adagrad", lr=0.05),
    _case(
        "Adagrad",
        "decays-maximize",
        lr=0.05,
        lr_decay=0.1,
        weight_decay=0.1,
        initial_accumulator_value=0.25,
        eps=1e-6,
        maximize=True,
    ),
    _case("Adadelta", lr=0.5),
    _case("Adadelta", "decay-maximize", lr=0.5, rho=0.7, eps=1e-4, weight_decay=0.1, maximize=True),
    _case("Adamax", lr=3e-3),
    _case("Adamax", "decay-maximize", lr=3e-3, betas=(0.6, 0.8), eps=1e-6, weight_decay=0.1, maximize=True),
    _case("NAdam", lr=3e-3),
    _case("NAdam", "decay", lr=3e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, momentum_decay=0.3),
    _case("NAdam", "decoupled-maximize", lr=3e-3, weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
    _case("RAdam", lr=2e-3),
    # Its average is long enough for the rectification from the third step on, by default from the sixth.
    _case("RAdam", "decay", lr=2e-3, betas=(0.8, 0.7), eps=1e-6, weight_decay=0.1),
    _case("RAdam", "decoupled-maximize", lr=2e-3, weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
    _case("ASGD", lr=0.03),
    _case("ASGD", "averaging-maximize", lr=0.05, lambd=0.1, alpha=0.6, t0=1.0, weight_decay=0.02, maximize=True),
    _case("Rprop", lr=0.02),
    _case("Rprop", "etas-maximize", lr=0.02, etas=(0.3, 1.7), step_sizes=(1e-3, 0.2), maximize=True),
    _case("Lion", lr=2e-3),
    _case("Lion", "decay-maximize", lr=2e-3, betas=(0.6, 0.8), weight_decay=0.1, maximize=True),
    _case("Lion", "caution", lr=2e-3, weight_decay=0.1, caution=True),
    _case("Adan", lr=2e-3),
    _case("Adan", "caution", lr=2e-3, betas=(0.7, 0.6, 0.8), eps=1e-6, weight_decay=0.1, caution=True),
    _case("Adan", "decay", lr=2e-3, betas=(0.7, 0.6, 0.8), eps=1e-6, weight_decay=0.1),
    _case("Adan", "no-prox-maximize", lr=2e-3, weight_decay=0.1, no_prox=True, maximize=True),
    _case("AdEMAMix", lr=2e-3),
    _case(
        "AdEMAMix",
        "warmup-maximize",
        lr=2e-3,
        betas=(0.6, 0.8, 0.98),
        alpha=3.0,
        t_alpha=4,
        t_beta3=7,
        eps=1e-6,
        weight_decay=0.1,
        maximize=True,
    ),
    _case("ADOPT", lr=2e-3),
    _case("ADOPT", "decay", lr=2e-3, betas=(0.7, 0.8), eps=1e-4, clip_exp=0.5, weight_decay=0.1),
    # Without a bound, eps keeps first gradients near 0 from making thousands of the next, whose error is that of luck.
    _case(
        "ADOPT", "decouple-maximize", lr=2e-3, eps=0.1, clip_exp=None, weight_decay=0.1, decouple=True, maximize=True
    ),
    _case("AdamAtan2", lr=2e-3),
    _case("AdamAtan2", "decay-maximize", lr=2e-3, betas=(0.6, 0.8), weight_decay=0.1, a=0.7, b=2.0, maximize=True),
    _case("NAdamW", lr=2e-3),
    _case("NAdamW", "decay-maximize", lr=2e-3, betas=(0.6, 0.8), eps=1e-6, weight_decay=0.1, maximize=True),
    _case("LaProp", lr=2e-3),
    _case("LaProp", "decay-maximize", lr=2e-3, betas=(0.6, 0.8), eps=1e-6, weight_decay=0.1, maximize=True),
    _case("AdaBelief", lr=2e-3),
    _case("AdaBelief", "still", lr=2e-3, degenerated_to_sgd=False, weight_decay=0.1, fixed_decay=True),
    _case(
        "AdaBelief",
        "amsgrad-maximize",
        lr=2e-3,
        betas=(0.6, 0.8),
        eps=1e-6,
        amsgrad=True,
        rectify=False,
        weight_decay=0.1,
        decoupled_decay=False,
        maximize=True,
    ),
    _case("StableAdamW", lr=2e-3),
    _case("StableAdamW", "decay-maximize", lr=2e-3, betas=(0.6, 0.8), eps=1e-4, weight_decay=0.1, maximize=True),
    _case("AdamWScheduleFree", lr=2e-3),
    _case(
        "AdamWScheduleFree",
        "warmup-maximize",
        lr=2e-3,
        betas=(0.6, 0.8),
        eps=1e-6,
        weight_decay=0.1,
        warmup_steps=3,
        r=1.0,
        weight_lr_power=1.0,
        maximize=True,
    ),
    # Its average is long enough for the rectification from the third step on.
    _case("RAdamScheduleFree", lr=2e-3, betas=(0.9, 0.7)),
    _case(
        "RAdamScheduleFree",
        "loud-maximize",
        lr=2e-3,
        betas=(0.6, 0.8),
        eps=1e-6,
        weight_decay=0.1,
        r=1.0,
        weight_lr_power=1.0,
        silent_sgd_phase=False,
        maximize=True,
    ),
    _case("SGDScheduleFree", lr=0.05),
    _case(
        "SGDScheduleFree",
        "warmup-maximize",
        lr=0.05,
        momentum=0.7,
        weight_decay=0.1,
        warmup_steps=3,
        r=1.0,
        weight_lr_power=1.0,
        maximize=True,
    ),
    _case("SophiaG", lr=2e-3),
    _case("SophiaG", "decay-maximize", lr=2e-3, betas=(0.6, 0.8), rho=0.5, weight_decay=0.3, bs=2.0, maximize=True),
    _case("LAMB", lr=2e-3),
    _case("LAMB", "plain", lr=2e-3, betas=(0.6, 0.8), eps=1e-4, weight_decay=0.0, bias_correction=False),
    _case("LAMB", "clip", lr=2e-3, weight_decay=0.1, grad_averaging=False, trust_clip=True),
    _case("LAMB", "always-maximize", lr=2e-3, weight_decay=0.0, always_adapt=True, maximize=True),
    _case("LAMB", "decoupled", lr=2e-3, weight_decay=0.1, decoupled_decay=True, clamp_value=0.5),
    _case("LAMB", "caution", lr=2e-3, betas=(0.6, 0.8), eps=1e-4, weight_decay=0.1, caution=True),
    _case("MARS", lr=2e-3),
    _case("MARS", "decay-maximize", lr=2e-3, betas=(0.6, 0.8), eps=1e-6, weight_decay=0.1, gamma=0.3, maximize=True),
    _case("NovoGrad", lr=2e-3),
    _case("NovoGrad", "decay-maximize", lr=2e-3, betas=(0.6, 0.8), eps=1e-4, weight_decay=0.1, maximize=True),
    _case("NovoGrad", "decoupled", lr=2e-3, weight_decay=0.1, grad_averaging=True, decoupled_decay=True),
    _case("Prodigy", lr=1.0, d0=1e-3),
    _case(
        "Prodigy",
        "l2-maximize",
        lr=0.5,
        betas=(0.6, 0.8),
        beta3=0.7,
        eps=1e-4,
        weight_decay=0.1,
        decouple=False,
        use_bias_correction=True,
        d0=1e-2,
        growth_rate=1.2,
        maximize=True,
    ),
    _case("Prodigy", "safeguard", lr=1.0, weight_decay=0.1, safeguard_warmup=True, d0=1e-2, d_coef=0.5),
    _case("LARS", lr=0.5, momentum=0.9, weight_decay=0.02, trust_coeff=0.02),
    _case("LARS", "plain", lr=0.05),
    _case(
        "LARS",
        "clip",
        lr=0.05,
        momentum=0.9,
        dampening=0.3,
        weight_decay=0.1,
        trust_coeff=0.02,
        eps=1e-6,
        trust_clip=True,
    ),
    _case(
        "LARS",
        "nesterov-maximize",
        lr=0.5,
        momentum=0.7,
        nesterov=True,
        trust_coeff=0.02,
        always_adapt=True,
        maximize=True,
    ),
]


def _is_had(case: Case) -> bool:
    """Whether the installed torch has all its arguments."""
    try:
        case.ours([Parameter(torch.zeros(1))])
    except TypeError as error:
        if "is for a newer torch" not in str(error):
            raise
        return False
    return True


CASES = [case for case in CASES if _is_had(case)]

# The one without a suffix, unless another shows more.
_SHOWN_BY = {"SGD": "sgd-momentum"}
ONE_PER_OPTIMIZER = [case for case in CASES if case.name == _SHOWN_BY.get(case.optimizer, case.optimizer.lower())]

# Those that keep the same states differ in numbers alone.
ONE_PER_STATES = list({(case.optimizer, *case.kept): case for case in (*reversed(CASES), *ONE_PER_OPTIMIZER)}.values())

# Those of which a param's step knows of no other param.
APART = [case for case in CASES if not case.joint]
ONE_PER_APART = [case for case in ONE_PER_OPTIMIZER if not case.joint]

# Where torch's own class says what is right.
TWINS = [case for case in CASES if case.has_twin]
ONE_PER_TWIN = [case for case in ONE_PER_OPTIMIZER if case.has_twin]


def named(name: str) -> Case:
    """The case of this name."""
    return next(case for case in CASES if case.name == name)
