"""What other packages' optimizers write is refused by ours where it would start anew or step by another rule."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise
from support import assert_identical, save_and_load, snapshot
from torch.nn import Parameter

import fusedopt
from fusedopt._peers.registry import OTHERS, name_of


def _trained(path: str, shapes: Any = ((64, 64), (7,)), **kwargs: Any) -> Any:
    module, _, name = path.rpartition(".")
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = getattr(importlib.import_module(module), name)(params, **kwargs)
    getattr(optimizer, "train", lambda: None)()
    for _ in range(2):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return optimizer


# A class of theirs, its arguments, the class of ours that its file was given to, and what the refusal says.
FILES: list[tuple[str, dict[str, Any], str, str]] = [
    ("bitsandbytes.optim.Lion", {}, "Lion", "another optimizer, bitsandbytes, by its keys"),
    ("bitsandbytes.optim.Lion8bit", {}, "Lion", "another optimizer, bitsandbytes, by its keys"),
    ("bitsandbytes.optim.AdamW", {}, "AdamW", "another optimizer, bitsandbytes, by its keys"),
    ("bitsandbytes.optim.SGD", {"lr": 0.1, "momentum": 0.9}, "SGD", "another optimizer, bitsandbytes, by its keys"),
    ("bitsandbytes.optim.RMSprop", {}, "RMSprop", "another optimizer, bitsandbytes, by its keys"),
    ("optimi.SGD", {"lr": 0.1, "momentum": 0.9}, "SGD", "another optimizer, optimi, by its keys"),
    ("optimi.AdamW", {"lr": 0.1}, "AdamW", r"lacks \['betas'\].*, as optimi has"),
    ("optimi.Lion", {"lr": 0.1}, "Lion", r"lacks \['betas'\].*, as optimi has"),
    ("heavyball.AdamW", {"lr": 0.1}, "AdamW", "another optimizer, heavyball, by its keys"),
    ("heavyball.SGD", {"lr": 0.1}, "SGD", "lacks .*, as heavyball has"),
    ("dadaptation.DAdaptLion", {}, "Lion", "has numerator_weighted=.*it scales its steps by a distance"),
    ("dadaptation.DAdaptAdam", {}, "AdamW", "has numerator_weighted=.*it scales its steps by a distance"),
    ("prodigyopt.Prodigy", {}, "AdamW", "another optimizer, prodigyopt, by its keys"),
    ("schedulefree.AdamWScheduleFree", {}, "AdamW", "another optimizer, AdamWScheduleFree, by its keys"),
    ("schedulefree.SGDScheduleFree", {}, "SGD", "another optimizer, SGDScheduleFree, by its keys"),
    ("timm.optim.laprop.LaProp", {"lr": 0.1, "caution": True}, "LaProp", "has caution=True"),
    ("timm.optim.sgdw.SGDW", {"lr": 0.1, "weight_decay": 0.1}, "SGD", "has caution=False.*it decays p by"),
    ("timm.optim.rmsprop_tf.RMSpropTF", {"momentum": 0.9}, "RMSprop", "has decoupled_decay=False"),
    ("timm.optim.nadamw.NAdamW", {}, "NAdam", "another optimizer, Adam or AdamW or"),
    ("timm.optim.lamb.Lamb", {}, "LAMB", "has 'max_grad_norm', which is an option"),
    ("timm.optim.adafactor.Adafactor", {}, "Adafactor", "lacks .*, as .*has"),
    (
        "transformers.optimization.Adafactor",
        {},
        "Adafactor",
        "lacks .*'beta2_decay'.*, as Adafactor of transformers or timm has",
    ),
    ("pytorch_optimizer.Adan", {}, "Adan", "has 'max_grad_norm', which is an option"),
    ("pytorch_optimizer.AdaMax", {}, "Adamax", r"lacks \['step'\]"),
    ("pytorch_optimizer.RAdam", {}, "RAdam", r"lacks \['step'\]"),
    ("pytorch_optimizer.Lion", {"use_gc": True}, "Lion", "has use_gc=True"),
    ("torchao.optim.AdamW8bit", {}, "AdamW", "'exp_avg' of its state in the file is a .*OptimState8bit, which no step"),
    ("torch_optimizer.Lamb", {}, "LAMB", "another optimizer, torch_optimizer, by its keys"),
]


@pytest.mark.parametrize(("path", "kwargs", "name", "match"), FILES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_file_is_refused_at_the_load(path: str, kwargs: dict[str, Any], name: str, match: str) -> None:
    theirs = _trained(path, **kwargs)
    # heavyball's own classes are in its file.
    file = save_and_load(theirs.state_dict(), weights_only="heavyball" not in path)
    ours = getattr(fusedopt, name)([Parameter(torch.ones(64, 64)), Parameter(torch.ones(7))])
    for p in ours.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    ours.step()
    before, groups = snapshot(ours), ours.param_groups
    with pytest.raises(ValueError, match=match):
        ours.load_state_dict(file)
    assert_identical(snapshot(ours), before)
    assert ours.param_groups is groups
    ours.step()


# What tells these apart is not in a file: the rule is taken for ours.
PATHS = {
    "bitsandbytes.LAMB": "bitsandbytes.optim.LAMB",
    "bitsandbytes.LARS": "bitsandbytes.optim.LARS",
    "deepspeed.DeepSpeedCPULion": "deepspeed.ops.lion.DeepSpeedCPULion",
    "optimi.RAdam": "optimi.RAdam",
    "optimi.Ranger": "optimi.Ranger",
    "pytorch_optimizer.Lamb": "pytorch_optimizer.Lamb",
    "pytorch_optimizer.AdaFactor": "pytorch_optimizer.AdaFactor",
    "pytorch_optimizer.Muon": "pytorch_optimizer.Muon",
    "timm.Muon": "timm.optim.muon.Muon",
    "torch_optimizer.SGDW": "torch_optimizer.SGDW",
}


def test_every_other_rule_is_a_class_of_theirs() -> None:
    assert PATHS.keys() == OTHERS.keys()
    for name, path in PATHS.items():
        module, _, cls = path.rpartition(".")
        assert name_of(getattr(importlib.import_module(module), cls)) == name


@pytest.mark.parametrize("path", [path for name, path in PATHS.items() if name != "pytorch_optimizer.Muon"])
def test_a_live_one_of_another_rule_is_refused(path: str) -> None:
    needs = {"lr": 0.1, **({"momentum": 0.9} if path.endswith("LARS") else {})}
    with pytest.raises(TypeError, match="fusedopt has no class with the rule of"):
        fusedopt.replace(_trained(path, **needs))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [5000, 4096])
def test_codes_are_decoded_as_bitsandbytes_does(size: int, signed: bool) -> None:
    theirs = _trained("bitsandbytes.optim.AdamW8bit", ((size,),))
    (param,) = theirs.param_groups[0]["params"]
    state = {key: value.clone() for key, value in theirs.state[param].items() if isinstance(value, torch.Tensor)}
    which, name = ("1", "exp_avg") if signed else ("2", "exp_avg_sq")
    table = QuantState(state["absmax" + which], code=state["qmap" + which], blocksize=256, dtype=torch.float32)
    expected = dequantize_blockwise(state["state" + which], table)
    ours = fusedopt.replace(theirs)
    assert_identical(ours.state[param][name], expected)


@pytest.fixture
def overrides() -> Any:
    from bitsandbytes.optim import GlobalOptimManager

    manager = GlobalOptimManager.get_instance()
    yield manager
    manager.initialize()


def test_numbers_that_bitsandbytes_has_by_param_are_refused(overrides: Any) -> None:
    params = [Parameter(torch.ones(5)) for _ in range(2)]
    theirs = importlib.import_module("bitsandbytes.optim").AdamW(params, lr=0.01)
    overrides.register_parameters(params)
    overrides.override_config(params[1], "lr", 0.5)
    with pytest.raises(ValueError, match=r"param 1 of group 0 has lr=0.5, by override_config"):
        fusedopt.replace(theirs)
    overrides.override_config(params[1], "lr", 0.01)
    fusedopt.replace(theirs)


def test_groups_of_optimi_that_decay_in_two_ways_are_refused() -> None:
    groups = [{"params": [Parameter(torch.ones(5))]}, {"params": [Parameter(torch.ones(5))], "decouple_wd": False}]
    theirs = importlib.import_module("optimi").AdamW(groups, lr=0.01, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"param_groups\[1\] of optimi.AdamW steps as fusedopt.Adam does"):
        fusedopt.replace(theirs)
