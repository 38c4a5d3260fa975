"""What may happen to an optimizer that is in use: one entry of OPERATIONS each.

An operation draws all it needs from a generator of its own, so that a sequence without one of its members is as good a
sequence. It tells what it did, or returns None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

import fusedopt

from .session import Session, normal
from .setups import DTYPES, HALVES, ParamSpec, lay_out, layouts_of

Operation = Callable[[Session, Random], str | None]
# With how often each is drawn.
OPERATIONS: dict[str, tuple[Operation, int]] = {}


def operation(often: int = 1) -> Callable[[Operation], Operation]:
    def enter(apply: Operation) -> Operation:
        OPERATIONS[apply.__name__] = (apply, often)
        return apply

    return enter


def _describe(grads: list[Tensor | None]) -> str:
    return ", ".join("None" if g is None else f"{g.dtype}{list(g.stride())}".removeprefix("torch.") for g in grads)


@operation(often=14)
def step(session: Session, random: Random) -> str | None:
    grads = session.gradients(random)
    session.step(grads)
    return f"step with gradients {_describe(grads)}"


@operation(often=4)
def step_and_clear(session: Session, random: Random) -> str | None:
    grads = session.gradients(random)
    session.step(grads, zero_grad=True)
    return f"step(zero_grad=True) with gradients {_describe(grads)}"


def _scaler(session: Session, random: Random) -> Any:
    """None where GradScaler itself would refuse the gradients."""
    fused = session.options.get("fused") is True
    if any(p.dtype.is_complex or (p.dtype == torch.float16 and not fused) for p in session.params):
        return None
    make = random.choice([lambda **k: torch.amp.GradScaler("cpu", **k), lambda **k: fusedopt.GradScaler("cpu", **k)])
    scaler = make(init_scale=2.0 ** random.randint(0, 6), growth_interval=10**6)
    scaler.scale(torch.ones(()))
    return scaler


def _scaled(session: Session, random: Random, scale: float) -> list[Tensor | None]:
    return [None if g is None else g * scale for g in session.gradients(random, plain=True)]


@operation(often=2)
def step_with_scaler(session: Session, random: Random) -> str | None:
    scaler = _scaler(session, random)
    if scaler is None:
        return None
    grads = _scaled(session, random, scaler.get_scale())
    if all(g is None for g in grads):
        return None
    session.step(grads, scaler=scaler)
    return f"{type(scaler).__module__}.GradScaler steps at scale {scaler.get_scale()}"


@operation(often=1)
def overflow(session: Session, random: Random) -> str | None:
    scaler = _scaler(session, random)
    if scaler is None:
        return None
    grads = _scaled(session, random, scaler.get_scale())
    large = [g for g in grads if g is not None and g.numel()]
    if not large:
        return None
    large[-1].view(-1)[-1] = random.choice([float("inf"), float("nan")])
    for p, g in zip(session.params, grads, strict=True):
        p.grad = g
    scaler.step(session.optimizer)
    session.skipped()
    return "GradScaler skips a step with an infinity"


@operation(often=2)
def scale_gradients(session: Session, random: Random) -> str | None:
    session.scale = random.choice([1.0, 1.0, 0.1, 1e-2, 1e-3])
    return f"gradients are {session.scale} from here on"


@operation(often=1)
def many_steps(session: Session, random: Random) -> str | None:
    """Long enough for what is always rounded to the same side to show."""
    count = random.randint(5, 12)
    for _ in range(count):
        session.step(session.gradients(random, plain=True))
    return f"{count} steps"


@operation(often=2)
def edit_rate(session: Session, random: Random) -> str | None:
    group = random.randrange(len(session.groups))
    value = session.case.kwargs["lr"] * random.choice([0.0, 0.1, 0.5, 1.0, 2.0])
    session.set_hyper(group, "lr", value)
    return f"lr of group {group} = {value}"


@operation(often=1)
def schedule(session: Session, random: Random) -> str | None:
    gamma = random.choice([0.5, 0.9])
    torch.optim.lr_scheduler.ExponentialLR(session.optimizer, gamma).step()
    for hypers in session.hypers:
        hypers["lr"] *= gamma
    # The scheduler has put a wrapper around step, which copies do not have.
    session.optimizer.__dict__.pop("step", None)
    return f"ExponentialLR(gamma={gamma}) steps"


@operation(often=2)
def edit_betas(session: Session, random: Random) -> str | None:
    group = random.randrange(len(session.groups))
    key = random.choice(["betas", "weight_decay", "eps"])
    before = session.hypers[group].get(key)
    if before is None:
        return None
    values = {
        "betas": tuple(random.choice([0.5, 0.8, 0.9, 0.99]) for _ in before) if key == "betas" else None,
        "weight_decay": random.choice([0.01, 0.1]) if before else before,
        "eps": random.choice([1e-8, 1e-6, 1e-3]),
    }
    session.set_hyper(group, key, values[key])
    return f"{key} of group {group} = {values[key]}"


@operation(often=1)
def edit_options(session: Session, random: Random) -> str | None:
    if "ema_decay" in session.options and random.random() < 0.5:
        session.options["ema_decay"] = session.optimizer.ema_decay = random.choice([0.0, 0.5, 0.99])
        return f"ema_decay = {session.optimizer.ema_decay}"
    session.options["max_grad_norm"] = session.optimizer.max_grad_norm = random.choice([None, 0.5, 10.0])
    return f"max_grad_norm = {session.optimizer.max_grad_norm}"


@operation(often=1)
def add_group(session: Session, random: Random) -> str | None:
    if len(session.params) > 5:
        return None
    dtypes = [d for d in DTYPES if session.setup.partner != "remainder" or d != "float16"]
    if session.options.get("fused") is not None or session.options.get("foreach") is not None:
        dtypes.remove("complex64")
    if random.random() < 0.5:
        dtypes = [str(session.params[0].dtype).removeprefix("torch.")]
    specs = [ParamSpec.drawn(random, random.choice(dtypes)) for _ in range(random.randint(1, 2))]
    if session.setup.partner and not any(s.dtype in HALVES for s in specs):
        return None
    hypers = {"lr": session.case.kwargs["lr"] * random.choice([0.5, 1.0])}
    session.add_group(specs, random.getrandbits(32), **hypers)
    return f"a group of {specs} with {hypers}"


@operation(often=1)
def freeze_or_unfreeze(session: Session, random: Random) -> str | None:
    index = random.randrange(len(session.params))
    param = session.params[index]
    param.grad = None
    param.requires_grad_(not param.requires_grad)
    return f"param {index} is {'unfrozen' if param.requires_grad else 'frozen'}"


def _edited(random: Random, value: Tensor) -> tuple[str, Tensor]:
    """A name and new values, some of which are the old ones."""
    mask = normal(value.shape, torch.float32, random.getrandbits(32)) > 0
    other = normal(value.shape, value.dtype, random.getrandbits(32), 0.5)
    edits: dict[str, Tensor] = {
        "zero_()": torch.zeros_like(value),
        "mul_(mask)": value * mask,
        "other values": other,
        "other values in places": torch.where(mask, value, other),
        "mul_(0.5)": value * 0.5,
        "neg_()": -value,
    }
    if not value.is_complex():
        edits["clamp_(-0.25, 0.25)"] = value.clamp(-0.25, 0.25)
    name = random.choice(list(edits))
    return name, edits[name]


@operation(often=5)
def edit_param(session: Session, random: Random) -> str | None:
    index = random.randrange(len(session.params))
    param = session.params[index]
    name, new = _edited(random, param.detach().clone())
    how = random.choice(["through .data", "under no_grad", "by model.load_state_dict"])
    if how == "through .data":
        param.data.copy_(new)
    elif how == "under no_grad":
        with torch.no_grad():
            param.copy_(new)
    else:
        session.model.load_state_dict({**session.model.state_dict(), str(index): new})
    session.edited(index)
    return f"param {index}: {name} {how}"


@operation(often=1)
def replace_data(session: Session, random: Random) -> str | None:
    """Another tensor behind the same param, in the same order of memory unless no state is in codes."""
    index = random.randrange(len(session.params))
    param = session.params[index]
    name, new = _edited(random, param.detach().clone())
    layout = "as it was"
    if not session.coded:
        layout = random.choice(layouts_of(tuple(param.shape)))
        new = lay_out(new, layout)
    else:
        new = torch.empty_like(param).copy_(new)
    param.data = new
    session.edited(index)
    return f"param {index}: .data = {name}, {layout}"


@operation(often=1)
def relay(session: Session, random: Random) -> str | None:
    """The model in another memory format: the same numbers, and codes that move to other blocks."""
    layout = random.choice(["channels_last", "contiguous", "transposed"])
    done = []
    for index, param in enumerate(session.params):
        if layout in layouts_of(tuple(param.shape)) and param.ndim > 1 and param.requires_grad:
            param.data = lay_out(param.detach(), layout)
            done.append(index)
            if session.reference:
                session.reference.coded_anew(index, param)
    if done and session.coded and session.reference is None:
        # A checkpoint in between would code once more than the session without it.
        session.step([normal(p.shape, p.dtype, 1) if p.requires_grad else None for p in session.params])
    return f"params {done} are {layout} from here on" if done else None


@operation(often=1)
def copy_params(session: Session, random: Random) -> str | None:
    """Have steps write copies in 16 bits."""
    chosen = [i for i, p in enumerate(session.params) if p.dtype == torch.float32 and random.random() < 0.7]
    if not chosen or session.setup.partner:
        return None
    dtype = random.choice([torch.bfloat16, torch.float16])
    session.copies = {i: torch.zeros_like(session.params[i], dtype=dtype) for i in chosen}
    session.copy_again()
    return f"copies of params {chosen} in {dtype}"
