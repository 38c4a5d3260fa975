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

# bitsandbytes keeps norms of updates where these make another rule.
KEYS = frozenset(key for keys, _ in _STATES for key in keys if isinstance(key, str)) | {"unorm_vec"}

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


# Hyper-parameters by which a group is of one class or of few.
TELLING = frozenset(
    {"d_coef", "etas", "gamma", "grad_averaging", "lr_in_momentum", "momentum_decay", "rho", "schedule_decay"}
    | {"trust_clip", "trust_coeff", "trust_coefficient", "weight_lr_power"}
)


# Of what tells of a group where no class was named, keys that more packages than one have.
_OF_SEVERAL = frozenset({"fixed_decay", "scale_parameter"})


# Those whose files fusedopt.load_foreign reads; tests/test_foreign_files.py holds it to the registry.
CONVERTED = frozenset(name for _, name in (*_STATES, *_GROUPS)) - {"heavyball", "dadaptation"}


def whose(keys: Collection[Any], group: Collection[Any] = ()) -> str | None:
    """The package that these keys of a state, or else those of its group, are known from."""
    for found, signs in ((keys, _STATES), (group, _GROUPS)):
        for needed, name in signs:
            if all(key in found for key in needed):
                return name
    return None


def package_of(group: Collection[Any]) -> str | None:
    """The package of a group with keys that are of one package alone."""
    return whose((), set(group) - _OF_SEVERAL)


def _decays(group: Group) -> bool:
    return bool(group.get("weight_decay"))


def _given(rule: str, group: Group) -> bool:
    return True


# Of those whose decay no hyper-parameter moves, the ones that take it apart from the gradient; and those that divide
# averages by 1 - beta^t.
_APART_ALWAYS = frozenset(
    {"Adafactor", "AdamAtan2", "AdamW", "AdamWScheduleFree", "Adan", "AdEMAMix", "LaProp", "Lion", "MARS", "Muon"}
    | {"NAdamW", "RAdamScheduleFree", "SophiaG", "StableAdamW"}
)
_CORRECTS = frozenset(
    {"AdaBelief", "Adam", "AdamAtan2", "AdamW", "AdamWScheduleFree", "Adamax", "Adan", "AdEMAMix", "LAMB", "LaProp"}
    | {"MARS", "NAdam", "NAdamW", "RAdam", "RAdamScheduleFree", "SparseAdam", "StableAdamW"}
)
# What says of ours and of theirs whether the decay is apart.
_OURS_APART = {"AdaBelief": "decoupled_decay", "ADOPT": "decouple", "LAMB": "decoupled_decay"}
_OURS_APART |= {"NovoGrad": "decoupled_decay", "Prodigy": "decouple"}
_THEIRS_APART = (
    "decoupled_decay",
    "weight_decouple",
    "decouple_wd",
    "adamw_mode",
    "adam_w_mode",
    "decouple",
    "decoupled",
)


def _decoupled(rule: str, group: Group) -> bool:
    """Whether ours takes the decay apart from the gradient."""
    return rule in _APART_ALWAYS or bool(group.get(_OURS_APART.get(rule, "decoupled_weight_decay")))


def _says_apart(key: str) -> Callable[[str, Group], bool]:
    return lambda r, g: bool(g[key]) and _decays(g) and not _decoupled(r, g)


def _says_added(key: str) -> Callable[[str, Group], bool]:
    # Of pytorch_optimizer's Adan this decides where the decay is, not whether it is apart.
    of_place = {"weight_decouple": "Adan"}.get(key)
    return lambda r, g: r != of_place and not g[key] and _decays(g) and _decoupled(r, g)


def _other_beta1(rule: str, group: Group) -> bool:
    own = group["betas"][0] if "betas" in group else None if rule == "Adafactor" else 0
    return group["beta1"] is not None and bool(group["beta1"] != own)


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
    *(Setting(key, _says_apart(key), _APART) for key in _THEIRS_APART),
    *(Setting(key, _says_added(key), _ADDED) for key in _THEIRS_APART),
    Setting("corrected_weight_decay", lambda r, g: bool(g["corrected_weight_decay"]) and _decays(g), _SCHEDULED),
    Setting("decouple_lr", lambda r, g: bool(g["decouple_lr"]) and _decays(g), _SCHEDULED),
    Setting("fixed_decay", lambda r, g: bool(g["fixed_decay"]) and _decays(g), "it decays p by weight_decay alone"),
    # timm's RMSpropTF has the key, its name for torch's RMSprop has not.
    Setting("decoupled_decay", lambda r, g: r == "RMSprop" and not g.get("eps_in_sqrt"), _WITHIN),
    Setting(
        "bias_correction",
        lambda r, g: r in _CORRECTS and not g["bias_correction"],
        "it does not divide averages by 1 - beta^t",
    ),
    Setting("beta1", lambda r, g: r == "Adafactor" and _other_beta1(r, g), "it averages its updates by beta1"),
    Setting(
        "beta1", lambda r, g: r != "Adafactor" and _other_beta1(r, g), "it averages gradients by beta1, this one not"
    ),
    Setting("use_gc", lambda r, g: bool(g["use_gc"]), "it subtracts the mean from gradients"),
    Setting("adanorm", lambda r, g: bool(g["adanorm"]), "it scales gradients by an average of their norm"),
    Setting("clipping_threshold", lambda r, g: g["clipping_threshold"] is not None, "it divides steps by their RMS"),
    Setting("d_coef", _given, _OTHER_RULE),
    Setting("numerator_weighted", _given, _OTHER_RULE),
    # A distance of 1 is none.
    Setting("d", lambda r, g: r != "Adafactor" and g["d"] != 1, _OTHER_RULE),
    Setting("weight_lr_power", _given, "its params are an interpolation between iterates that ours have no state for"),
)


def other_rule(rule: str, group: Group, known: Collection[Any]) -> Setting | None:
    """The first setting in a group that makes another rule of the class `rule`, which reads the keys `known`."""
    for setting in SETTINGS:
        if setting.key in group and setting.key not in known and setting.matters(rule, group):
            return setting
    return None
