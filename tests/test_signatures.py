"""What a person, an editor and a type checker see of the constructors is what they take: torch's arguments and ours."""

from __future__ import annotations

import ast
import inspect
import math
import pydoc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.nn import Parameter

import fusedopt
from fusedopt._core import arguments
from fusedopt._core.arguments import Options
from fusedopt._core.optimizer import FusedStep

ROOT = Path(__file__).parent.parent
KEYWORD = inspect.Parameter.KEYWORD_ONLY
OPTIMIZERS = [
    name
    for name, cls in vars(fusedopt).items()
    if name in fusedopt.__all__ and isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    if cls is not fusedopt.GenericOptimizer
]
TWINS = [name for name in OPTIMIZERS if hasattr(torch.optim, name)]
# What newer torches than the oldest that works have added.
NEWER = {"Adam": ["decoupled_weight_decay"], "LBFGS": ["maximize"]}
# Optimizers that are not one pass take fewer of the options.
LACKS = {
    "LBFGS": set(Options._fields),
    "Adafactor": {"state_dtype", "offload"},
    "SparseAdam": {"ema_decay", "offload"},
    "Muon": {"offload"},
    "NovoGrad": {"offload"},
    "Prodigy": {"offload"},
}

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def parameters(cls: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(cls).parameters.values())


def described(parameter: inspect.Parameter) -> tuple[str, Any, Any]:
    return parameter.name, parameter.kind, parameter.default


def options_of(name: str) -> dict[str, Any]:
    return {option: default for option, default in Options()._asdict().items() if option not in LACKS.get(name, ())}


def matrix() -> list[Parameter]:
    return [Parameter(torch.zeros(2, 2))]


@pytest.mark.parametrize("name", TWINS)
def test_arguments_are_those_of_the_installed_torch_and_ours(name: str) -> None:
    theirs = [described(p) for p in parameters(getattr(torch.optim, name))]
    known = [argument for argument, _, _ in theirs]
    lacked = [(argument, KEYWORD, False) for argument in NEWER.get(name, []) if argument not in known]
    flags = [(argument, KEYWORD, None) for argument in ("foreach", "fused") if argument not in known]
    options = [(argument, KEYWORD, default) for argument, default in options_of(name).items()]
    beyond = [
        (argument, KEYWORD, default) for argument, default in getattr(getattr(fusedopt, name), "_beyond", {}).items()
    ]
    assert [described(p) for p in parameters(getattr(fusedopt, name))] == [*theirs, *lacked, *flags, *beyond, *options]


@every_optimizer
def test_every_argument_is_named_and_typed(name: str) -> None:
    cls = getattr(fusedopt, name)
    assert "__init__" in vars(cls)
    assert "__signature__" not in {*vars(cls), *vars(cls.__init__)}
    for parameter in parameters(cls):
        assert parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        assert parameter.annotation is not inspect.Parameter.empty
    shown = pydoc.plain(pydoc.render_doc(cls))
    shown = shown[shown.index(f"{name}(params:") :].partition("->")[0]
    assert re.findall(r"(\w+): ", shown) == [p.name for p in parameters(cls)]


# Values other than any default, by the names of the arguments that can have no other kind of value.
VALUES: dict[str, Any] = {
    "betas": (0.5, 0.25),
    "t_alpha": 7,
    "t_beta3": 9,
    "etas": (0.25, 2.0),
    "step_sizes": (0.5, 1.0),
    "eps": 0.125,
    "beta2_decay": -0.5,
    "d": 3.0,
    "max_iter": 7,
    "max_eval": 9,
    "history_size": 3,
    "ns_steps": 3,
    "ns_coefficients": (3.0, -4.0, 2.0),
    "line_search_fn": "strong_wolfe",
    "adjust_lr_fn": "match_rms_adamw",
    "foreach": False,
    "fused": False,
}


def value_of(name: str, parameter: inspect.Parameter) -> Any:
    if parameter.name in VALUES:
        value = VALUES[parameter.name]
        if (name, parameter.name) == ("Adafactor", "eps"):
            return (0.5, 0.25)
        return (*value, 0.125) if parameter.name == "betas" and len(parameter.default) == 3 else value
    return not parameter.default if isinstance(parameter.default, bool) else 0.375


@every_optimizer
def test_what_is_given_arrives(name: str) -> None:
    cls = getattr(fusedopt, name)
    for parameter in parameters(cls)[1:]:
        if parameter.name in Options._fields or (parameter.name in NEWER.get(name, []) and not takes(name, parameter)):
            continue
        given = {parameter.name: value_of(name, parameter)}
        assert given[parameter.name] != parameter.default
        more = {"momentum": 0.5} if parameter.name == "nesterov" and name in ("SGD", "LARS") else {}
        optimizer = cls(matrix(), **given, **more)
        kept = parameter.name in optimizer.param_groups[0]
        assert kept or parameter.name in ("foreach", "fused")
        assert optimizer.param_groups[0].get(parameter.name, given[parameter.name]) == given[parameter.name]


def takes(name: str, parameter: inspect.Parameter) -> bool:
    return parameter.name in inspect.signature(getattr(torch.optim, name)).parameters


@every_optimizer
def test_options_arrive(name: str) -> None:
    given: dict[str, Any] = {
        "max_grad_norm": 0.5,
        "ema_decay": 0.25,
        "state_dtype": "float32",
        "master_weights": "remainder",
        "rounding": "stochastic",
        "rounding_seed": 7,
        "offload": "cpu",
    }
    given = {option: given[option] for option in options_of(name)}
    optimizer = getattr(fusedopt, name)([Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))], **given)
    assert getattr(optimizer, "max_grad_norm", None) == given.get("max_grad_norm")
    if len(given) > 1:
        kept = optimizer._precision
        averages = "ema_decay" in given
        assert (optimizer.ema_decay, kept.average) == (0.25 if averages else None, averages)
        assert (kept.partner, kept.seed, kept.offload) == ("remainder", 7, "offload" in given)
        assert set(kept.states.values()) <= {"float32"}


def test_flags_may_be_none_as_for_torch() -> None:
    """Configurations have them so. The group holds what torch's holds."""
    for name in TWINS:
        flags = [p.name for p in parameters(getattr(torch.optim, name)) if isinstance(p.default, bool)]
        for flag in flags:
            ours, theirs = (getattr(lib, name)(matrix(), **{flag: None}) for lib in (fusedopt, torch.optim))
            assert ours.param_groups[0][flag] is theirs.param_groups[0][flag] is None


class Listed:
    """As OmegaConf's ListConfig: a sequence that is no list and no tuple."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


@pytest.mark.parametrize("kind", [list, Listed, lambda items: torch.tensor(items, dtype=torch.float64).numpy()])
@pytest.mark.parametrize("given", ["constructor", "group"])
@every_optimizer
def test_several_numbers_may_be_any_sequence(name: str, given: str, kind: Callable[[Any], Any]) -> None:
    for parameter in parameters(getattr(fusedopt, name)):
        if isinstance(parameter.default, tuple):
            wanted = value_of(name, parameter)
            more = {parameter.name: kind(wanted)}
            cls, groups = getattr(fusedopt, name), [{"params": matrix(), **more}]
            optimizer = cls(matrix(), **more) if given == "constructor" else cls(groups)
            assert tuple(float(x) for x in optimizer.param_groups[0][parameter.name]) == wanted


def test_what_only_a_newer_torch_has_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    of_adam = dict(arguments._parameters(torch.optim.Adam))
    del of_adam["amsgrad"], of_adam["foreach"]
    monkeypatch.setattr(arguments, "_parameters", lambda twin: of_adam)
    assert "amsgrad" not in fusedopt.Adam(matrix(), lr=0.5)._torch_arguments({"amsgrad": False, "foreach": True})
    with pytest.raises(TypeError, match=r"amsgrad=True is for a newer torch: Adam of the installed .* lacks it"):
        fusedopt.Adam(matrix(), amsgrad=True)


@pytest.mark.skipif(takes("LBFGS", inspect.Parameter("maximize", KEYWORD)), reason="this torch has it")
def test_lbfgs_does_not_descend_where_it_was_told_to_ascend() -> None:
    with pytest.raises(TypeError, match="maximize=True is for a newer torch: LBFGS of the installed"):
        fusedopt.LBFGS(matrix(), maximize=True)


# Docstrings.

DOCUMENTED: dict[str, Any] = {name: getattr(fusedopt, name) for name in fusedopt.__all__ if name != "StateDtype"}
DOCUMENTED |= {f"functional.{name}": getattr(fusedopt.functional, name) for name in fusedopt.functional.__all__}
METHODS: dict[str, Any] = {
    f"{cls.__name__}.{name}": member
    for cls in [*FusedStep.__mro__, *map(fusedopt.__dict__.get, fusedopt.__all__)]
    if getattr(cls, "__module__", "").startswith("fusedopt.") and isinstance(cls, type)
    for name, member in vars(cls).items()
    if not name.startswith("_") and inspect.isfunction(member) and "Args:" in (member.__doc__ or "")
}


def entries(thing: Any) -> dict[str, str]:
    """What a docstring says of each argument."""
    doc = inspect.getdoc(thing) or ""
    section = re.search(r"^Args:\n((?:    .*\n?)+)", doc, re.MULTILINE)
    parts = re.split(r"^    (\w+): ", section.group(1), flags=re.MULTILINE)[1:] if section else []
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("thing", [*DOCUMENTED.values(), *METHODS.values()], ids=[*DOCUMENTED, *METHODS])
def test_docstrings_say_each_default(thing: Any) -> None:
    texts = entries(thing)
    own = [p for p in parameters(thing) if p.name != "self"]
    assert list(texts) == [p.name for p in own]
    for parameter in own:
        found = re.fullmatch(r".* Default: (.+)\.", f". {texts[parameter.name]}")
        assert bool(found) == (parameter.default is not parameter.empty), parameter.name
        if found:
            default = math.inf if found.group(1) == "inf" else ast.literal_eval(found.group(1))
            assert (type(default), default) == (type(parameter.default), parameter.default)


def test_all_docstrings_say_the_same_of_an_option() -> None:
    everywhere: dict[str, set[str]] = {}
    for name in OPTIMIZERS:
        for argument, text in entries(getattr(fusedopt, name)).items():
            if argument in (*Options._fields, "foreach", "differentiable"):
                everywhere.setdefault(argument, set()).add(text)
    assert {argument: len(texts) for argument, texts in everywhere.items()} == dict.fromkeys(everywhere, 1)


def test_what_a_compiled_rule_takes_beside_its_hyper_parameters_is_what_our_own_classes_take() -> None:
    own = [described(p) for p in parameters(fusedopt._compiled.CompiledRule) if p.kind is KEYWORD]
    assert own == [described(p) for p in parameters(fusedopt.StableAdamW) if p.kind is KEYWORD]


def test_names_of_choices_are_those_that_are_checked() -> None:
    kinds = {"master_weights": "MasterWeights", "rounding": "Rounding", "offload": "Offload"}
    for option, kind in kinds.items():
        choices = getattr(arguments, kind)
        for choice in get_args(choices):
            fusedopt.SGD([Parameter(torch.zeros(2, dtype=torch.bfloat16))], **{option: choice})
        named = ".*".join(f"'{choice}'" for choice in get_args(choices))
        with pytest.raises(ValueError, match=f"Invalid {option}: 'other'; use .*{named}"):
            fusedopt.SGD(matrix(), **{option: "other"})
