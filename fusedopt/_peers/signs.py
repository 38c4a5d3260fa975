"""By what the checkpoints of other packages are told, and which of their settings make another rule of one of ours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Group = Mapping[str, Any]

# Whose a param's state is, by keys that it has all of. The first that fits counts.
_STATES: tuple[tuple[frozenset[Any], str], ...] = (
    (frozenset({"__bnb_optimizer_quant_state__"}), "bitsandbytes"),
    (frozenset({"state1"}), "bitsandbytes"),
    (frozenset({"kahan_comp"}), "optimi"),
    (frozenset({0}), "heavyball"),
    (frozenset({"p0", "s"}), "prodigyopt"),
    (frozenset({"x0", "s"}), "dadaptation"),
    (frozenset({"exp_avg_sq_row"}), "Adafactor of transformers or timm"),
    (frozenset({"previous_grad"}), "pytorch_optimizer"),
    (frozenset({"trust_ratio"}), "torch_optimizer"),
    (frozenset({"master_param"}), "Transformer Engine or apex"),
)

# Whose a group is.
_GROUPS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"t_alpha"}), "bitsandbytes"),
    (frozenset({"decouple_lr", "max_lr"}), "optimi"),
    (frozenset({"d_coef"}), "prodigyopt"),
    (frozenset({"numerator_weighted"}), "dadaptation"),
    (frozenset({"weight_lr_power"}), "schedulefree"),
    (frozenset({"scale_parameter"}), "transformers"),
    (frozenset({"fixed_decay"}), "pytorch_optimizer"),
    (frozenset({"param_ecc"}), "heavyball"),
    (frozenset({"caution"}), "timm"),
)


# Those whose files fusedopt.load_foreign reads; tests/test_foreign_files.py holds it to the registry.
CONVERTED = frozenset(name for _, name in (*_STATES, *_GROUPS)) - {"heavyball", "dadaptation"}


def whose(keys: Collection[Any], group: Collection[Any] = ()) -> str | None:
    """The package that these keys of a state, or else those of its group, are known from."""
    for found, signs in ((keys, _STATES), (group, _GROUPS)):
        for needed, name in signs:
            if all(key in found for key in needed):
                return name
    return None


def _decays(group: Group) -> bool:
    return bool(group.get("weight_decay"))


def _given(rule: str, group: Group) -> bool:
    return True


def _decoupled(rule: str, group: Group) -> bool:
    """Whether ours takes the decay apart from the gradient."""
    return rule in ("AdamW", "Lion", "Adan", "Adafactor", "Muon") or bool(group.get("decoupled_weight_decay"))


@dataclass(frozen=True)
class Setting:
    """A key of a group that no class of ours has, when it makes another rule, and what is another."""

    key: str
    matters: Callable[[str, Group], bool]
    maths: str


_CAUTIOUS = "it leaves out elements whose update and gradient differ in sign"
_OTHER_RULE = "it scales its steps by a distance that it estimates, which this class has no state for"
_APART = "it decays p by 1 - lr * weight_decay, where this class adds weight_decay * p to the gradient"
_ADDED = "it adds weight_decay * p to the gradient, where this class decays p by 1 - lr * weight_decay"
_WITHIN = "it takes the root of square_avg + eps, where this class by its groups adds eps to the root"
_SCHEDULED = "it decays p by lr / max_lr * weight_decay, where this class does by lr * weight_decay"

SETTINGS = (
    Setting("caution", lambda r, g: bool(g["caution"]), _CAUTIOUS),
    Setting("cautious", lambda r, g: bool(g["cautious"]), _CAUTIOUS),
    # timm's SGDW has the key, its name for torch's SGD has not.
    Setting("caution", lambda r, g: r == "SGD" and _decays(g) and not _decoupled(r, g), _APART),
    Setting("decoupled_decay", lambda r, g: bool(g["decoupled_decay"]) and _decays(g) and not _decoupled(r, g), _APART),
    Setting("weight_decouple", lambda r, g: bool(g["weight_decouple"]) and _decays(g) and not _decoupled(r, g), _APART),
    # Of its Adan this decides where the decay is, not whether it is apart.
    Setting(
        "weight_decouple",
        lambda r, g: r != "Adan" and not g["weight_decouple"] and _decays(g) and _decoupled(r, g),
        _ADDED,
    ),
    Setting("decouple_wd", lambda r, g: not g["decouple_wd"] and _decays(g) and _decoupled(r, g), _ADDED),
    Setting("adamw_mode", lambda r, g: not g["adamw_mode"] and _decays(g) and _decoupled(r, g), _ADDED),
    Setting("adam_w_mode", lambda r, g: not g["adam_w_mode"] and _decays(g) and _decoupled(r, g), _ADDED),
    Setting("corrected_weight_decay", lambda r, g: bool(g["corrected_weight_decay"]) and _decays(g), _SCHEDULED),
    Setting("decouple_lr", lambda r, g: bool(g["decouple_lr"]) and _decays(g), _SCHEDULED),
    Setting("fixed_decay", lambda r, g: bool(g["fixed_decay"]) and _decays(g), "it decays p by weight_decay alone"),
    # timm's RMSpropTF has the key, its name for torch's RMSprop has not.
    Setting("decoupled_decay", lambda r, g: r == "RMSprop" and not g.get("eps_in_sqrt"), _WITHIN),
    Setting("bias_correction", lambda r, g: not g["bias_correction"], "it does not divide averages by 1 - beta^t"),
    Setting("beta1", lambda r, g: r == "Adafactor" and g["beta1"] is not None, "it averages its updates by beta1"),
    Setting("use_gc", lambda r, g: bool(g["use_gc"]), "it subtracts the mean from gradients"),
    Setting("adanorm", lambda r, g: bool(g["adanorm"]), "it scales gradients by an average of their norm"),
    Setting("clipping_threshold", lambda r, g: g["clipping_threshold"] is not None, "it divides steps by their RMS"),
    Setting("d_coef", _given, _OTHER_RULE),
    Setting("numerator_weighted", _given, _OTHER_RULE),
    Setting("weight_lr_power", _given, "its params are an interpolation between iterates that ours have no state for"),
)


def other_rule(rule: str, group: Group, known: Collection[Any]) -> Setting | None:
    """The first setting in a group that makes another rule of the class `rule`, which reads the keys `known`."""
    for setting in SETTINGS:
        if setting.key in group and setting.key not in known and setting.matters(rule, group):
            return setting
    return None
