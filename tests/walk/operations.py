"""What may happen to an optimizer that is in use: one entry of OPERATIONS each.

An operation draws all it needs from a generator of its own, so that a sequence without one of its members is as good a
sequence. It tells what it did, or returns None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from oracle import float64
from torch import Tensor

import fusedopt

from .others import Other
from .reference import multiplier
from .session import Session, normal
from .setups import DTYPES, HALVES, ParamSpec, lay_out, layouts_of
from .storages import spacing

Operation = Callable[[Session, Random], str | None]
# With how often each is drawn.
OPERATIONS: dict[str, tuple[Operation, int]] = {}


def operation(often: int = 1) -> Callable[[Operation], Operation]:
    def enter(apply: Operation) -> Operation:
        OPERATIONS[apply.__name__] = (apply, often)
        return apply

    return enter


def _describe(grads: list[Tensor | None]) -> str:
    def one(g: Tensor | None) -> str:
        return "None" if g is None else f"{g.dtype} {'sparse' if g.is_sparse else list(g.stride())}"

    return ", ".join(one(g).removeprefix("torch.") for g in grads)


@operation(often=14)
def step(session: Session, random: Random) -> str | None:
    grads = session.gradients(random)
    session.step(grads)
    return f"step with gradients {_describe(grads)}"


@operation(often=4)
def step_and_clear(session: Session, random: Random) -> str | None:
    grads = session.gradients(random)
    session.step(grads, "zero_grad")
    return f"step(zero_grad=True) with gradients {_describe(grads)}"


@operation(often=1)
def step_with_closure(session: Session, random: Random) -> str | None:
    grads = session.gradients(random)
    session.step(grads, "closure")
    return f"step(closure) with gradients {_describe(grads)}"


@operation(often=2)
def backward(session: Session, random: Random) -> str | None:
    """Unless step_in_backward refuses: it cannot clip, nor draw by the place that a param has among others."""
    grads = session.gradients(random, plain=True)
    if any(p.dtype.is_complex for p in session.params) or session.options.get("max_grad_norm") is not None:
        return None
    if all(g is None for g in grads) or session.draws:
        return None
    session.step(grads, "backward")
    return f"step_in_backward with gradients {_describe(grads)}"


@operation(often=1)
def clip(session: Session, random: Random) -> str | None:
    """clip_grad_norm_, then a step on what it has left."""
    grads = session.gradients(random, plain=True)
    present = [g for g in grads if g is not None]
    if not present or any(g.is_sparse for g in present):
        return None
    most = random.choice([0.5, 5.0])
    before = [float64(g) for g in present]
    factor, _ = multiplier(present, 1.0, most)
    for p, g in zip(session.params, grads, strict=True):
        p.grad = g
    fusedopt.clip_grad_norm_(session.params, most)
    for g, old in zip(present, before, strict=True):
        real = float64(g)
        unit = spacing(old * factor, g.real.dtype)
        assert (real - old * factor).abs().le(unit * 2 + 2.0**-20 * old.abs() * factor).all(), "wrongly clipped"
    session.step(grads)
    return f"clip_grad_norm_ to {most}, and step"


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
    session.unchanged()
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
    # torch's line search divides by the rate.
    factors = [0.1, 0.5, 1.0, 2.0] + ([0.0] if session.case.optimizer != "LBFGS" else [])
    value = session.case.kwargs["lr"] * random.choice(factors)
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


# Values that each hyper-parameter may be given in a group; 0 is none of them, for it may change which states there are.
VALUES: dict[str, tuple[Any, ...]] = {
    "betas": (0.5, 0.8, 0.9, 0.99),
    "weight_decay": (0.01, 0.1),
    "eps": (1e-8, 1e-6, 1e-3),
    "momentum": (0.5, 0.9),
    "alpha": (0.8, 0.99),
    "rho": (0.7, 0.95),
    "lr_decay": (0.01, 0.1),
    "lambd": (1e-4, 0.1),
    "momentum_decay": (4e-3, 0.3),
    "trust_coeff": (0.001, 0.02),
    "maximize": (False, True),
}


@operation(often=3)
def edit_group(session: Session, random: Random) -> str | None:
    group = random.randrange(len(session.groups))
    hypers = session.hypers[group]
    keys = [key for key in VALUES if hypers.get(key) or (key == "maximize" and key in hypers)]
    key = random.choice([*keys, "lr"])
    if key == "lr":
        value: Any = session.case.kwargs["lr"] * random.choice([0.3, 1.0])
        value = torch.tensor(value, dtype=torch.float64) if session.case.takes_tensor("lr") else value
    elif isinstance(hypers[key], tuple):
        # Adafactor's epsilons are of another kind.
        value = tuple(random.choice(VALUES[key]) for _ in hypers[key]) if key == "betas" else hypers[key]
    else:
        value = random.choice(VALUES[key])
    session.set_hyper(group, key, value)
    return f"{key} of group {group} = {value}"


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
    if isinstance(session.case, Other):
        dtypes = [session.setup.params[0].dtype]
    specs = [ParamSpec.drawn(random, random.choice(dtypes), session.case) for _ in range(random.randint(1, 2))]
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
    session.unchanged()
    if done and session.coded:
        # A checkpoint in between would code once more than it had to, and say so.
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
