"""Optimizers compiled from a user's rule: the tutorial as it stands, equality with built-in ones, errors, the cache."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiers
import torch
from support import EMULATED, assert_identical, every_isa
from tiers import thinned

import fusedopt
from fusedopt import _C
from fusedopt import _compiled as compiled

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs" / "your_own_rule.md").read_text()
WITH_SUMS = (ROOT / "csrc" / "rules" / "lars.h").read_text()

pytestmark = pytest.mark.skipif(EMULATED, reason="a shared object has kernels for a GPU, not for the emulator")

ADABELIEF = re.findall(r"```cpp\n(.*?)```", TUTORIAL, re.DOTALL)[0]


ALL_ISAS = _C.built_isas()


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("FUSEDOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
    # For what is not about the bits of several: the widest takes a third of the time of all.
    patch.setattr(_C, "built_isas", lambda: [_C.chosen_isa()[0]])
    yield
    patch.undo()


def test_the_tutorials_mistake_is_reported_as_it_says() -> None:
    quoted = re.search(r"RuntimeError: (rule.*?)\n```", TUTORIAL, re.DOTALL)
    assert quoted
    *_, wrong = quoted.group(1).splitlines()
    line = next(line for line in ADABELIEF.splitlines() if "m = lerp" in line)
    broken = ADABELIEF.replace(line, f"    {wrong.strip()}")
    with pytest.raises(
        RuntimeError, match=r"rule AdaBelief does not compile:\n  AdaBelief\.h:\d+: 'h' was not declared"
    ) as e:
        fusedopt.compile_rule(broken, name="AdaBelief")
    number = re.search(r"AdaBelief\.h:(\d+)", str(e.value))
    assert number
    assert wrong.strip() in broken.splitlines()[int(number.group(1)) - 1]
    assert wrong.strip() in str(e.value)


Compiled = None
# With --all the rule that takes longest to compile, which has most to it; else one with variants as well, in a quarter
# of the time. Counters are in the tutorial's, sums in the one that is compiled for a GPU.
HEADER = "adam.h" if tiers.everything else "sgd.h"
HYPERS: dict[str, Any]
if HEADER == "adam.h":
    HYPERS = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": 0}
    HYPERS |= {"decoupled_weight_decay": 1, "bias_correction": 1, "caution": 0}
else:
    HYPERS = {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "nesterov": 0}
    HYPERS |= {"decoupled_weight_decay": 0}


@pytest.fixture(scope="module")
def compiled_class(_cache: None) -> type[fusedopt.Lion]:
    global Compiled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_C, "built_isas", lambda: ALL_ISAS)
        Compiled = fusedopt.compile_rule(ROOT / "csrc" / "rules" / HEADER, name="Compiled")
    return Compiled


def built_in_class(params: list[Any]) -> torch.optim.Optimizer:
    if HEADER == "adam.h":
        return fusedopt.AdamW(params, lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    return fusedopt.SGD(params, lr=1e-2, momentum=0.9, dampening=0.3, weight_decay=0.1)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str
)
@every_isa
@pytest.mark.usefixtures("isa")
def test_a_compiled_rule_has_the_bits_of_the_built_in_one(compiled_class: type, dtype: torch.dtype) -> None:
    values = [
        torch.randn(n, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype) for n in (1, 77, 1030)
    ]
    params = [[torch.nn.Parameter(v.clone()) for v in values] for _ in range(2)]
    ours, built_in = compiled_class(params[0], **HYPERS), built_in_class(params[1])
    for _ in range(4):
        for p, q in zip(*params, strict=True):
            p.grad = q.grad = torch.randn_like(p)
        ours.step()
        built_in.step()
    assert_identical(params[0], params[1])
    for p, q in zip(*params, strict=True):
        assert_identical(dict(ours.state[p]), dict(built_in.state[q]))


def test_states_of_a_compiled_rule_can_be_in_codes() -> None:
    """The rule says what kind of number each is, whatever its name."""
    cls = fusedopt.compile_rule(ADABELIEF, name="AdaBelief")
    assert _C.states(cls._rule) == {"exp_avg": "average", "exp_avg_var": "magnitude"}
    param = torch.nn.Parameter(torch.randn(5000))
    coded, plain = (
        cls([torch.nn.Parameter(param.detach().clone())], lr=1e-2, **o) for o in ({"state_dtype": "int8"}, {})
    )
    for optimizer in (coded, plain):
        for seed in range(3):
            (p,) = optimizer.param_groups[0]["params"]
            p.grad = torch.randn(5000, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
    (p,), (q,) = (optimizer.param_groups[0]["params"] for optimizer in (coded, plain))
    assert coded.state[p]["exp_avg_var"].dtype == torch.uint8
    assert (p - q).abs().max() < 0.01


def test_checkpoints_copies_and_pickles(compiled_class: type) -> None:
    param = torch.nn.Parameter(torch.randn(5))
    param.grad = torch.randn(5)
    optimizer = compiled_class([param], **HYPERS)
    optimizer.step()
    other = compiled_class([torch.nn.Parameter(param.detach().clone())], **{**HYPERS, "lr": 9.0})
    # Loading shares what it need not convert, as torch's does.
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for twin in (other, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (p,) = twin.param_groups[0]["params"]
        p.grad = param.grad.clone()
        twin.step()
    optimizer.step()
    assert_identical(other.param_groups[0]["params"], [param])
    assert other.param_groups[0]["lr"] == 1e-2


def _sparse(optimizer: Any, param: torch.Tensor) -> None:
    param.grad = torch.ones(5).to_sparse()


def _differentiable(optimizer: Any, param: torch.Tensor) -> None:
    optimizer.param_groups[0]["differentiable"] = True


@pytest.mark.parametrize(
    ("leave", "text"),
    [
        (_sparse, "AdaBelief does not support sparse gradients; SparseAdam does"),
        (_differentiable, "AdaBelief cannot be differentiated: set 'differentiable' to False"),
    ],
)
def test_what_no_engine_takes_is_refused_as_by_built_in_ones(leave: Any, text: str) -> None:
    for cls in (fusedopt.compile_rule(ADABELIEF, name="AdaBelief"), fusedopt.AdaBelief):
        param = torch.nn.Parameter(torch.ones(5))
        param.grad = torch.ones(5)
        optimizer: Any = cls([param])
        leave(optimizer, param)
        with pytest.raises(RuntimeError, match=re.escape(text)):
            optimizer.step()


def test_a_counter_of_another_dtype_is_counted_in() -> None:
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    optimizer = fusedopt.compile_rule(ADABELIEF, name="AdaBelief")([param])
    optimizer.step()
    optimizer.state[param]["step"] = counter = torch.tensor(1)
    optimizer.step()
    assert optimizer.state[param]["step"] is counter
    assert counter == 2


def test_a_rule_may_be_named_as_any_class_of_the_package() -> None:
    belief: Any = fusedopt.compile_rule(ADABELIEF, name="AdaBelief")
    names = [name for name in fusedopt.__all__ if isinstance(getattr(fusedopt, name), type)]
    assert {"Muon", "LBFGS"} <= {*names}
    for name in names:
        param = torch.nn.Parameter(torch.ones(5))
        param.grad = torch.ones(5)
        optimizer = type(name, (belief,), {})([param])
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state[param]["step"] == 1


def test_the_signature_names_the_hyper_parameters(compiled_class: type) -> None:
    parameters = inspect.signature(compiled_class).parameters
    shared = list(inspect.signature(fusedopt.StableAdamW).parameters.values())[-11:]
    assert list(parameters) == ["params", *HYPERS, *(p.name for p in shared)]
    assert [(p.kind, p.default) for p in list(parameters.values())[-11:]] == [(p.kind, p.default) for p in shared]
    # The package's rules give no defaults.
    assert parameters["lr"].default is inspect.Parameter.empty
    with pytest.raises(TypeError, match="missing a required argument: 'lr'"):
        compiled_class([torch.zeros(1)])
    belief = fusedopt.compile_rule(ADABELIEF, name="AdaBelief")
    assert inspect.signature(belief).parameters["betas"].default == (0.9, 0.999)
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1.0"):
        belief([torch.zeros(1)], lr=-1.0)
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 1: 1.0"):
        belief([torch.zeros(1)], betas=(0.9, 1.0))


def test_compiling_again_takes_the_cache_and_a_change_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fusedopt.compile_rule(ADABELIEF, name="AdaBelief")
    with monkeypatch.context() as patch:
        patch.setattr(compiled._Build, "_compile", lambda self, folder: pytest.fail("compiled again"))
        assert fusedopt.compile_rule(ADABELIEF, name="AdaBelief")._rule == first._rule
        with pytest.raises(pytest.fail.Exception):
            fusedopt.compile_rule(ADABELIEF.replace("1e-12", "1e-10"), name="AdaBelief")
    changed = fusedopt.compile_rule(ADABELIEF.replace("1e-12", "1e-10"), name="AdaBelief")
    # Two rules of one name live side by side.
    a, b = first([torch.zeros(1)]), changed([torch.zeros(1)])
    assert (a.defaults["eps"], b.defaults["eps"]) == (1e-12, 1e-10)


@pytest.mark.parametrize(
    ("source", "name", "error", "text"),
    [
        (ADABELIEF, "not a name", ValueError, r"name is 'not a name'; give a Python identifier"),
        ("int x;\n", "Nothing", ValueError, r"source holds no rule; write a struct derived from RuleDefaults"),
        (
            ADABELIEF.replace('"exp_avg", "exp_avg_var"', '"exp_avg"'),
            "TooFew",
            RuntimeError,
            r"TooFew\.h:\d+|sweep\.h:\d+",
        ),
        (
            ADABELIEF.replace("double lr, beta1", "double beta1"),
            "Short",
            RuntimeError,
            r"Hypers holds one double for each",
        ),
    ],
)
def test_bad_rules_get_a_sentence(source: str, name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fusedopt.compile_rule(source, name=name)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"states": ["ema"]}, r"state_names has 'ema', by which options keep a tensor beside a rule's; rename it"),
        ({"states": ["master"]}, r"state_names has 'master', by which options"),
        ({"states": ["remainder"]}, r"state_names has 'remainder', by which options"),
        ({"states": ["compensation"]}, r"state_names has 'compensation', by which options"),
        ({"states": ["code_order"]}, r"state_names has 'code_order', by which options"),
        ({"states": ["mean", "mean_scale"]}, r"state_names has 'mean_scale', by which options"),
        ({"states": ["step"]}, r"'step' is twice among the rule's counter_names and state_names; rename one"),
        (
            {"hypers": ["lr", "lr"]},
            r"hyper_names has \['lr', 'lr'\]; number the entries of a tuple from 0, in their order",
        ),
        ({"hypers": ["betas.1", "betas.0"]}, r"hyper_names has \['betas.1', 'betas.0'\]; number the entries"),
        ({"hypers": ["betas.1", "betas.2"]}, r"hyper_names has \['betas.1', 'betas.2'\]; number the entries"),
        ({"hypers": ["betas", "betas.1"]}, r"hyper_names has \['betas', 'betas.1'\]; number the entries"),
        ({"hypers": ["weight-decay"]}, r"hyper_names has 'weight-decay', which cannot name an argument"),
        ({"hypers": ["lambda"]}, r"hyper_names has 'lambda', which cannot name an argument; give a Python identifier"),
        ({"hypers": ["differentiable"]}, r"hyper_names has 'differentiable', which every optimizer has for something"),
        ({"hypers": ["params"]}, r"hyper_names has 'params', which every optimizer has for something else; rename it"),
        ({"hypers": ["ema_decay"]}, r"hyper_names has 'ema_decay', which every optimizer has for something else"),
    ],
    ids=str,
)
def test_names_that_are_taken_are_refused(names: dict[str, list[str]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compiled._refuse_names({"hypers": ["lr"], "states": ["mean"], "counters": ["step"], **names})


def test_a_state_may_not_be_called_as_an_average_is() -> None:
    """A step with ema_decay would take one tensor for both."""
    with pytest.raises(ValueError, match=r"state_names has 'ema', by which options keep a tensor beside a rule's"):
        fusedopt.compile_rule(ADABELIEF.replace('"exp_avg_var"', '"ema"'), name="Averages")


def test_the_struct_of_the_classs_name_is_compiled() -> None:
    second = ADABELIEF.replace("struct AdaBelief", "struct Second")
    derived = "struct Third : Second {};\n"
    assert compiled._struct_in(ADABELIEF, "Any") == "AdaBelief"
    assert compiled._struct_in(ADABELIEF + second, "Second") == "Second"
    assert compiled._struct_in(ADABELIEF + second + derived, "Third") == "Third"
    assert (
        compiled._struct_in("// struct Old : RuleDefaults\n/* struct Older : RuleDefaults */" + second, "Any")
        == "Second"
    )
    with pytest.raises(ValueError, match=r"several rules, AdaBelief, Second; give the name of one, not 'Any'"):
        fusedopt.compile_rule(ADABELIEF + second, name="Any")


def test_an_edit_of_what_a_rule_includes_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outer, inner, beside = tmp_path / "outer.h", tmp_path / "inner.h", tmp_path / "path" / "beside.h"
    beside.parent.mkdir()
    monkeypatch.setenv("CPATH", str(beside.parent))
    outer.write_text('#pragma once\n#include "inner.h"\n#include <beside.h>\n#include <cmath>\n')
    keys = []
    for file, text in ((inner, "// 1\n"), (beside, "// 1\n"), (inner, "// 2\n"), (beside, "// 2\n"), (inner, "// 2\n")):
        file.write_text(text)
        keys.append(compiled._Build(f'#include "{outer}"\n{ADABELIEF}', None, "AdaBelief", "AdaBelief").key)
    assert len(set(keys)) == 4
    assert keys[-1] == keys[-2]


def test_a_file_includes_what_lies_beside_it(tmp_path: Path) -> None:
    """A helper beats one of the package's of its name, and an error in it is reported as its own."""
    helper = tmp_path / "lion.h"
    rule = tmp_path / "adabelief.h"
    opened = ADABELIEF.replace("struct AdaBelief", '#include "lion.h"\n\nstruct AdaBelief')
    assert "1e-12" in opened
    rule.write_text(opened.replace("1e-12", "of_lion_h()"))
    helper.write_text("#pragma once\nconstexpr double of_lion_h() { return 1e-13; }\n")
    made = fusedopt.compile_rule(rule, name="AdaBelief")
    assert inspect.signature(made).parameters["eps"].default == 1e-13
    helper.write_text(helper.read_text().replace("1e-13", "1e-13;;+"))
    with pytest.raises(RuntimeError, match=r"does not compile:\n  lion\.h:2: expected primary-expression"):
        fusedopt.compile_rule(rule, name="AdaBelief")


def test_the_cache_may_be_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compilers run in another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSEDOPT_CACHE", "cache")
    fusedopt.compile_rule(ADABELIEF.replace("1e-12", "1e-11"), name="AdaBelief")
    assert list(tmp_path.glob("cache/AdaBelief-*/rule.so"))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        RuntimeError, match=r"needs a C\+\+17 compiler and 'no-such-compiler' is not found; install g\+\+"
    ):
        fusedopt.compile_rule(ADABELIEF, name="AdaBelief")


def test_a_file_that_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError):
        fusedopt.compile_rule("no_such_rule.h", name="Missing")


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"cannot open shared object file"):
        _C.load_rule(str(tmp_path / "none.so"))


@thinned("one that has sums has all that others have", keep=lambda struct: struct == "LARS", together=0)
@pytest.mark.skipif(not _C.cuda_built(), reason="needs nvcc")
@pytest.mark.parametrize(
    ("struct", "text", "states"),
    [("AdaBelief", ADABELIEF, ["exp_avg", "exp_avg_var"]), ("LARS", WITH_SUMS, ["momentum_buffer"])],
)
def test_kernels_are_compiled_where_nvcc_is(
    monkeypatch: pytest.MonkeyPatch, struct: str, text: str, states: list[str]
) -> None:
    """Those of sums among them, without which a rule that has some would not load."""
    monkeypatch.delenv("FUSEDOPT_CUDA")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    build = compiled._Build(text, None, struct, f"Own{struct}")
    assert build.architectures == ["9.0"]
    library, _ = build.library()
    assert b"fusedopt_cuda" in library.read_bytes()
    assert (b"measure_any" in library.read_bytes()) == (struct == "LARS")
    assert _C.load_rule(str(library))["states"] == states
