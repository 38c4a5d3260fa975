"""Who takes part: this package, torch's implementations of each optimizer, and other packages where they are installed.

A baseline is an adapter of a few lines: why it cannot take part, how its optimizer is made from torch's arguments, and
how a step of it is called. What comes out of it is checked in ``oracle.py`` before it is timed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

import fusedopt

from .clock import Clock
from .contest import Contest

Step = Callable[[], object]

OURS, CONTROL = "fusedopt", "fusedopt again"
LOOP, FOREACH, FUSED, DEFAULT = "torch for-loop", "torch foreach", "torch fused", "torch default"
GRAPHED, OURS_GRAPHED, COMPILED = "torch fused, graphed", "fusedopt, graphed", "torch compiled"


# torch.compile unrolls a step tensor by tensor; on a CPU a C++ compiler then reads all of it.
MOST_COMPILED = {"cpu": 20, "cuda": 200}


@dataclass(frozen=True)
class Baseline(ABC):
    name: str
    # Whether new gradients have to come in the tensors of the old ones, whose addresses a graph has captured.
    keeps_gradients: ClassVar[bool] = False

    def absent(self) -> str:
        """Why it cannot run on this machine at all; empty if it can."""
        return ""

    def lacks(self, contest: Contest, device: torch.device) -> str:
        """Why it cannot take part in this contest; empty if it can."""
        return ""

    @abstractmethod
    def make(self, contest: Contest, groups: list[Any]) -> torch.optim.Optimizer: ...

    def wrap(self, optimizer: torch.optim.Optimizer, clock: Clock) -> Step:
        """What is timed."""
        return optimizer.step


def needs_cuda(device: torch.device) -> str:
    return "" if device.type == "cuda" else "runs on CUDA only"


@dataclass(frozen=True)
class Ours(Baseline):
    def make(self, contest: Contest, groups: list[Any]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = getattr(fusedopt, contest.optimizer)(groups, **contest.arguments)
        return made


@dataclass(frozen=True)
class Torch(Baseline):
    """The class of torch.optim with the constructor arguments that pick one of its implementations."""

    words: Mapping[str, Any] = field(default_factory=dict)

    def lacks(self, contest: Contest, device: torch.device) -> str:
        cls = getattr(torch.optim, contest.optimizer, None)
        if cls is None:
            return f"torch.optim has no {contest.optimizer}"
        known = inspect.signature(cls).parameters
        unknown = [word for word in self.words if word not in known]
        return f"torch.optim.{contest.optimizer} has no {unknown[0]}" if unknown else ""

    def make(self, contest: Contest, groups: list[Any]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = getattr(torch.optim, contest.optimizer)(
            groups, **{**contest.arguments, **self.words}
        )
        return made


class Replay:
    """Steps a few times as usual, until its gradients stay the same tensors; then captures a step and replays it."""

    def __init__(self, step: Step, clock: Clock) -> None:
        self.step = step
        self.clock = clock
        self.calls = 0
        self.replay: Step | None = None

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= 3:
            self.step()
            return
        if self.replay is None:
            self.replay = self.clock.capture(self.step)
        self.replay()


@dataclass(frozen=True)
class TorchGraphed(Torch):
    keeps_gradients = True

    def lacks(self, contest: Contest, device: torch.device) -> str:
        return super().lacks(contest, device) or needs_cuda(device)

    def wrap(self, optimizer: torch.optim.Optimizer, clock: Clock) -> Step:
        return Replay(optimizer.step, clock)


@dataclass(frozen=True)
class OursGraphed(Baseline):
    keeps_gradients = True

    def lacks(self, contest: Contest, device: torch.device) -> str:
        return needs_cuda(device)

    def make(self, contest: Contest, groups: list[Any]) -> torch.optim.Optimizer:
        cls = getattr(fusedopt, contest.optimizer)
        # SGD has no counters, and no such argument.
        words = {"capturable": True} if "capturable" in inspect.signature(cls).parameters else {}
        made: torch.optim.Optimizer = cls(groups, **{**contest.arguments, **words})
        return made

    def wrap(self, optimizer: torch.optim.Optimizer, clock: Clock) -> Step:
        return Replay(optimizer.step, clock)


@dataclass(frozen=True)
class TorchCompiled(Torch):
    """torch's step under torch.compile.

    The learning rate is a tensor: a number would be compiled into the step, and every change of a scheduler's would
    compile it anew.
    """

    def lacks(self, contest: Contest, device: torch.device) -> str:
        most = MOST_COMPILED[device.type]
        if contest.suite.tensors > most:
            return f"compiling a step over more than {most} tensors takes minutes"
        if contest.group_count > 1:
            return "is given one learning rate, a tensor, and the groups have several"
        return super().lacks(contest, device)

    def make(self, contest: Contest, groups: list[Any]) -> torch.optim.Optimizer:
        made = super().make(contest, groups)
        for group in made.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]))
        return made

    def wrap(self, optimizer: torch.optim.Optimizer, clock: Clock) -> Step:
        @torch.compile(fullgraph=False)
        def call() -> None:
            optimizer.step()

        return call


@dataclass(frozen=True)
class Call:
    """A class of another package: the arguments of torch's that it takes under the same names, and those it needs."""

    cls: str
    takes: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""


@dataclass(frozen=True)
class Foreign(Baseline):
    package: str = ""
    module: str = ""
    calls: Mapping[str, Call] = field(default_factory=dict)
    device: str = ""  # the only type of device that it runs on, if there is but one

    def absent(self) -> str:
        if importlib.util.find_spec(self.package) is None:
            return "not installed"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some greet whoever imports them
                for module in {call.module or self.module for call in self.calls.values()}:
                    importlib.import_module(module)
        except Exception as error:  # of another program, or of one that misses half of itself
            return f"cannot be imported: {first_line(error)}"
        return ""

    def lacks(self, contest: Contest, device: torch.device) -> str:
        if self.device and device.type != self.device:
            return f"runs on {self.device} only"
        call = self.calls.get(contest.optimizer)
        if call is None:
            return f"has no {contest.optimizer}"
        unknown = [key for key in contest.arguments if key not in call.takes]
        return f"its {call.cls} has no {unknown[0]}" if unknown else ""

    def make(self, contest: Contest, groups: list[Any]) -> torch.optim.Optimizer:
        call = self.calls[contest.optimizer]
        cls = getattr(importlib.import_module(call.module or self.module), call.cls)
        # Defaults differ between packages; ours are torch's.
        defaults = inspect.signature(getattr(fusedopt, contest.optimizer)).parameters
        known = {key: contest.arguments.get(key, defaults[key].default) for key in call.takes}
        made: torch.optim.Optimizer = cls(groups, **known, **call.fixed)
        return made


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


ADAM = ("lr", "betas", "eps", "weight_decay")
MOMENTUM = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
LION = ("lr", "betas", "weight_decay")

_ADAMW_MODE = {
    "Adam": Call("FusedAdam", ADAM, {"adam_w_mode": False}),
    "AdamW": Call("FusedAdam", ADAM, {"adam_w_mode": True}),
    "SGD": Call("FusedSGD", MOMENTUM),
}

FOREIGN = (
    Foreign(
        "apex",
        "apex",
        "apex.optimizers",
        {**_ADAMW_MODE, "Adagrad": Call("FusedAdagrad", ("lr", "eps", "weight_decay"))},
        "cuda",
    ),
    Foreign("TransformerEngine", "transformer_engine", "transformer_engine.pytorch.optimizers", _ADAMW_MODE, "cuda"),
    Foreign(
        "DeepSpeed",
        "deepspeed",
        "deepspeed.ops.adam",
        {
            "Adam": Call("DeepSpeedCPUAdam", ADAM, {"adamw_mode": False}),
            "AdamW": Call("DeepSpeedCPUAdam", ADAM, {"adamw_mode": True}),
            "Adagrad": Call("DeepSpeedCPUAdagrad", ("lr", "eps", "weight_decay"), module="deepspeed.ops.adagrad"),
            "Lion": Call("DeepSpeedCPULion", LION, module="deepspeed.ops.lion"),
        },
        "cpu",
    ),
    Foreign(
        "bitsandbytes",
        "bitsandbytes",
        "bitsandbytes.optim",
        {
            "Adam": Call("Adam", ADAM),
            "AdamW": Call("AdamW", ADAM),
            "SGD": Call("SGD", MOMENTUM),
            "RMSprop": Call("RMSprop", ("lr", "alpha", "eps", "weight_decay")),
            "Adagrad": Call("Adagrad", ("lr", "eps", "weight_decay")),
            "Lion": Call("Lion", LION),
        },
    ),
    Foreign("torchao", "torchao", "torchao.optim", {"AdamW": Call("_AdamW", (*ADAM, "amsgrad"))}),
    Foreign(
        "optimi",
        "optimi",
        "optimi",
        {
            "Adam": Call("Adam", ADAM),
            "AdamW": Call("AdamW", ADAM),
            "SGD": Call("SGD", ("lr", "momentum", "weight_decay"), {"torch_init": True}),
            "RAdam": Call("RAdam", ADAM),
            "Lion": Call("Lion", LION),
        },
    ),
)

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Ours(OURS),
        Ours(CONTROL),
        OursGraphed(OURS_GRAPHED),
        Torch(LOOP, {"foreach": False}),
        Torch(FOREACH, {"foreach": True}),
        Torch(FUSED, {"fused": True}),
        Torch(DEFAULT),
        TorchCompiled(COMPILED),
        TorchGraphed(GRAPHED, {"fused": True, "capturable": True}),
        *FOREIGN,
    )
}


def absent() -> dict[str, str]:
    """The packages that cannot take part on this machine, and why."""
    reasons = {baseline.name: baseline.absent() for baseline in FOREIGN}
    return {name: reason for name, reason in reasons.items() if reason}
