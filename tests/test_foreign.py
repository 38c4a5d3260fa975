"""Files and live optimizers of other packages go on in ours, and what has another rule is refused by its maths.

tests/peers runs the packages themselves; what is here has their keys, of a dozen packages, which makes it long.
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import ADAFACTOR, FORMS, OPTIMI, Form, foreign_params
from support import assert_identical, give_grads, params_of, save_and_load, snapshot, train
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt._peers import registry


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_file_goes_on_where_it_was(form: Form) -> None:
    whole = form.make(foreign_params(form.dtype))
    train(whole, 3)
    file = form.write(whole)
    params = [Parameter(p.detach().clone()) for p in params_of(whole)]
    ours = getattr(fusedopt, form.ours)(params, **form.options)
    before = copy.deepcopy(file)
    fusedopt.load_foreign(ours, file, form.source, **form.told)
    assert_identical(file, before)
    assert ours.param_groups[0].keys() == whole.param_groups[0].keys()
    train(whole, 3, first=3)
    train(ours, 3, first=3)
    for p, q in zip(params, params_of(whole), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert ours.max_grad_norm == whole.max_grad_norm


def test_every_class_has_a_form_or_is_run_in_its_own_tier() -> None:
    """Those without a build for a CPU are here."""
    known = {name for name in registry.PEERS if name.partition(".")[0] in ("apex", "transformer_engine")}
    assert known <= {registry.name_of(form.source) for form in FORMS}


def test_the_document_has_every_class() -> None:
    text = (Path(__file__).parent.parent / "docs/moving-in.md").read_text()
    variants = re.compile(r"bitsandbytes\.(Paged\w*|\w*(8|32)bit)")
    for name in (*registry.PEERS, *registry.OTHERS):
        assert variants.fullmatch(name) or re.search(rf"`{re.escape(name)}\b", text), name


# 8 bits, and tensors of a class of its own.


def _codes(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes in a table of two numbers, scales for each 256, and the table."""
    scales = torch.arange(1, -(-value.numel() // 256) + 1, dtype=torch.float32)
    table = torch.linspace(0, 1, 256)
    return torch.randint(0, 256, value.shape, dtype=torch.uint8), scales, table


@pytest.mark.parametrize("wrapped", [True, False], ids=["file", "live"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_codes_of_bitsandbytes_are_decoded(layout: torch.memory_format, wrapped: bool) -> None:
    """A code stands for a number of its table, times the scale of its 256 in memory."""
    param = Parameter(torch.zeros(8, 4, 12, 11))
    value = torch.zeros_like(param.detach().contiguous(memory_format=layout))
    codes, scales, table = _codes(value)
    codes = codes.contiguous(memory_format=layout)
    tensors = {"state1": codes, "absmax1": scales, "qmap1": table}
    state = {"step": 2, **({"__bnb_optimizer_quant_state__": tensors} if wrapped else tensors)}
    optimizer = fusedopt.Lion([param])
    group = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "params": [0]}
    fusedopt.load_foreign(optimizer, {"state": {0: state}, "param_groups": [group]}, "bitsandbytes.Lion8bit")
    memory = codes.permute(0, 2, 3, 1).reshape(-1) if layout == torch.channels_last else codes.reshape(-1)
    expected = torch.stack([table[int(code)] * scales[i // 256] for i, code in enumerate(memory)])
    assert_identical(optimizer.state[param]["exp_avg"].reshape(-1), expected)


def test_codes_of_both_averages_of_ademamix_are_decoded() -> None:
    """They have scales of their own."""
    param = Parameter(torch.zeros(20, 30))
    fast, slow, squares = (_codes(param) for _ in range(3))
    its = {"state1": torch.stack([fast[0], slow[0]]), "absmax1": torch.stack([fast[1], 10 * slow[1]]), "qmap1": fast[2]}
    its |= {"state2": squares[0], "absmax2": squares[1], "qmap2": squares[2]}
    group = {"lr": 0.1, "betas": (0.9, 0.99, 0.999), "eps": 1e-8, "weight_decay": 0.0, "alpha": 5.0, "params": [0]}
    optimizer = fusedopt.AdEMAMix([param])
    file = {"state": {0: {"step": 2, "__bnb_optimizer_quant_state__": its}}, "param_groups": [group]}
    fusedopt.load_foreign(optimizer, file, "bitsandbytes.PagedAdEMAMix8bit")
    for name, (codes, scales, table), factor in (
        ("exp_avg", fast, 1),
        ("exp_avg_slow", slow, 10),
        ("exp_avg_sq", squares, 1),
    ):
        expected = table[codes.int().flatten()] * (factor * scales).repeat_interleave(256)[:600]
        assert_identical(optimizer.state[param][name].flatten(), expected)


class Quantised(Tensor):
    """As torchao's: codes, a scale, and no storage of its own."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor) -> Quantised:
        made: Quantised = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, torch.tensor(0.5)
        return made

    def dequantize(self) -> Tensor:
        return self.codes.float() * self.scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


@pytest.mark.parametrize("source", ["torchao.optim.AdamW8bit", "torchao.optim.Adam4bit"])
def test_states_of_torchao_are_dequantised(source: str) -> None:
    param = Parameter(torch.zeros(4))
    codes = torch.arange(4)
    state = {"step": torch.tensor(2.0), "exp_avg": Quantised(codes), "exp_avg_sq": Quantised(codes)}
    group = {"lr": torch.tensor(0.5), "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
    file = {"state": {0: state}, "param_groups": [{**group, "params": [0]}]}
    optimizer = (fusedopt.AdamW if "AdamW" in source else fusedopt.Adam)([param])
    with pytest.raises(ValueError, match=r"'exp_avg' of its state in the file is a .*Quantised, which no step here"):
        optimizer.load_state_dict(file)
    fusedopt.load_foreign(optimizer, file, source)
    assert_identical(optimizer.state[param]["exp_avg"], codes / 2)
    assert type(optimizer.param_groups[0]["lr"]) is float
    give_grads([param], 0)
    optimizer.step()


def test_a_file_is_stored_as_the_optimizer_stores_states() -> None:
    form = FORMS[0]
    whole = form.make(foreign_params())
    train(whole, 3)
    ours = fusedopt.AdamW(params_of(whole), state_dtype="int8", rounding="stochastic")
    with pytest.warns(UserWarning, match="is rounded to u?int8"):
        fusedopt.load_foreign(ours, form.write(whole), form.source)
    assert {s["exp_avg"].dtype for s in ours.state.values()} == {torch.float32, torch.int8}


def test_dampening_weighs_the_first_gradient_of_optimi() -> None:
    form = next(form for form in FORMS if form.source == "optimi.SGD")
    param = Parameter(torch.zeros(3))
    ours = fusedopt.SGD([param])
    group = {"lr": 1.0, "momentum": 0.75, "weight_decay": 0.0, **form.group, "params": [0]}
    file = {"state": {}, "param_groups": [group]}
    fusedopt.load_foreign(ours, file, "optimi.SGD")
    param.grad = torch.ones(3)
    ours.step()
    assert param.tolist() == [-0.25] * 3


# Live optimizers, of classes that stand in a package's place.


def _class(path: str, **members: Any) -> Any:
    module, _, name = path.rpartition(".")
    return type(name, (torch.optim.Optimizer,), {"__module__": module, **members})


def _live(path: str, params: list[Parameter], defaults: dict[str, Any], **attributes: Any) -> Any:
    optimizer = _class(path)(params, defaults)
    vars(optimizer).update(attributes)
    return optimizer


def test_a_live_one_is_replaced_and_its_schedule_goes_on() -> None:
    params = [Parameter(torch.ones(4, dtype=torch.bfloat16)), Parameter(torch.ones(2, dtype=torch.bfloat16))]
    defaults = {"lr": 0.5, "bias_correction": True, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    theirs = _live(
        "transformer_engine.pytorch.optimizers.fused_adam.FusedAdam",
        params,
        defaults,
        adam_w_mode=0,
        master_weights=True,
        store_param_remainders=True,
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.5)
    theirs.param_groups[0].update(step=7, name="mine")
    theirs.state[params[0]] = {
        "exp_avg": torch.full((4,), 2.0),
        "exp_avg_sq": torch.full((4,), 3.0),
        "master_param": torch.full((4,), 5, dtype=torch.int16),
    }
    groups = theirs.param_groups
    ours: Any = fusedopt.replace(theirs)
    assert type(ours) is fusedopt.Adam
    assert ours.param_groups is groups
    assert ours.master_weights == "remainder"
    state = ours.state[params[0]]
    assert {key: value.flatten()[0].item() for key, value in state.items()} == {
        "step": 7,
        "exp_avg": 2.0,
        "exp_avg_sq": 3.0,
        "remainder": 5,
    }
    group = ours.param_groups[0]
    assert (group["weight_decay"], group["initial_lr"], group["name"]) == (0.1, 0.5, "mine")
    assert not {"step", "bias_correction"} & group.keys()
    assert (ours.defaults["betas"], ours.defaults["lr"]) == ((0.9, 0.99), 0.5)
    for p in params:
        p.grad = torch.ones_like(p)
    ours.step()
    schedule.step()
    assert ours.param_groups[0]["lr"] == 0.25
    assert [ours.state[p]["step"].item() for p in params] == [8, 1]
    ours.add_param_group({"params": [Parameter(torch.ones(1, dtype=torch.bfloat16))]})
    assert ours.param_groups[1]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_stochastic_rounding_goes_along(dtype: torch.dtype, stochastic: bool) -> None:
    defaults = {"lr": torch.tensor(0.5), "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
    params = [Parameter(torch.ones(4, dtype=dtype))]
    theirs = _live("torchao.optim.adam.AdamW8bit", params, defaults, bf16_stochastic_round=stochastic)
    ours: Any = fusedopt.replace(theirs)
    assert ours.rounding == ("stochastic" if stochastic and dtype == torch.bfloat16 else "nearest")


def test_the_norm_that_timm_clips_at_is_its_constructors() -> None:
    defaults = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0, "max_grad_norm": 3.0}
    theirs = _live("timm.optim.lamb.Lamb", foreign_params(), defaults)
    theirs.param_groups[0]["max_grad_norm"] = 1.0
    ours: Any = fusedopt.replace(theirs)
    assert ours.max_grad_norm == 3.0


# The way back.

WAYS_BACK = {name: peer for name, peer in registry.PEERS.items() if peer.back is not None}
# What a constructor of theirs is given for those.
_OTHERWISE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "deepspeed.DeepSpeedCPUAdam": [("AdamW", {}), ("Adam", {"adam_w_mode": False})],
    "lion_pytorch.Lion": [("Lion", {}), ("Lion", {"decoupled_wd": True, "_init_lr": 0.25})],
}


def _ours(name: str, **kwargs: Any) -> Any:
    needs = {"momentum": 0.5} if name == "SGD" else {}
    optimizer = getattr(fusedopt, name)(foreign_params(), lr=0.125, weight_decay=0.25, **needs, **kwargs)
    train(optimizer, 3)
    return optimizer


@pytest.mark.parametrize("name", WAYS_BACK)
def test_what_is_written_is_what_is_read(name: str) -> None:
    peer = WAYS_BACK[name]
    plain = [(peer.rule, {})] if isinstance(peer.rule, str) else []
    for rule, told in _OTHERWISE.get(name, plain):
        ours = _ours(rule)
        before = ours.state_dict()
        file = save_and_load(fusedopt.foreign_state_dict(ours, name, **told))
        assert file["param_groups"][0].keys() - {"step"} == {*peer.back.group, "params"}  # type: ignore[union-attr]
        assert_identical(ours.state_dict(), before)
        other = getattr(fusedopt, rule)([Parameter(p.detach().clone()) for p in params_of(ours)])
        fusedopt.load_foreign(other, file, name, **told)
        for mine, its in zip(ours.state.values(), other.state.values(), strict=True):
            assert_identical({key: its[key] for key in mine}, mine)
            assert its.keys() == mine.keys()
        train(ours, 2, first=3)
        train(other, 2, first=3)
        for p, q in zip(params_of(ours), params_of(other), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_states_go_back_in_float32_and_in_the_order_of_a_contiguous_param() -> None:
    param = Parameter(torch.randn(8, 4, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last))
    ours = fusedopt.AdamW([param], state_dtype="bfloat16")
    train(ours, 2)
    kept = fusedopt.foreign_state_dict(ours, "bitsandbytes.AdamW")["state"][0]["__bnb_optimizer_quant_state__"]
    assert kept["state1"].dtype == torch.float32
    assert kept["state1"].is_contiguous()
    assert_identical(kept["state1"], ours.state[param]["exp_avg"].float().contiguous())


def test_names_and_the_first_learning_rate_go_back() -> None:
    ours = fusedopt.Lion([("weight", Parameter(torch.zeros(2)))], lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(ours, 0.5)
    train(ours, 1)
    schedule.step()
    group = fusedopt.foreign_state_dict(ours, "timm.Lion")["param_groups"][0]
    assert (group["lr"], group["initial_lr"], group["param_names"]) == (0.25, 0.5, ["weight"])


def test_what_options_keep_stays_behind_with_a_word() -> None:
    ours = fusedopt.AdamW(foreign_params(torch.bfloat16), rounding="kahan", ema_decay=0.5, max_grad_norm=1.0)
    train(ours, 1)
    with pytest.warns(
        UserWarning, match="compensation, ema, ema_decay, max_grad_norm of this optimizer has no place i"
    ):
        fusedopt.foreign_state_dict(ours, "bitsandbytes.AdamW")
    lamb = fusedopt.LAMB(foreign_params(), max_grad_norm=2.0)
    train(lamb, 1)
    assert fusedopt.foreign_state_dict(lamb, "timm.Lamb")["param_groups"][0]["max_grad_norm"] == 2.0


def test_what_theirs_will_round_is_told() -> None:
    ours = fusedopt.AdamW(foreign_params(torch.bfloat16), state_dtype="float32")
    train(ours, 1)
    with pytest.warns(
        UserWarning, match="of deepspeed.DeepSpeedCPUAdam, which is torch's, rounds float32 states of para"
    ):
        fusedopt.foreign_state_dict(ours, "deepspeed.DeepSpeedCPUAdam")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fusedopt.foreign_state_dict(ours, "bitsandbytes.AdamW")


def _back(name: str, **kwargs: Any) -> Any:
    return lambda target, **told: fusedopt.foreign_state_dict(_ours(name, **kwargs), target, **told)


def test_what_has_no_place_there_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"bitsandbytes.AdamW has no amsgrad=True, by which param_groups\[0\] steps; its"
    ):
        _back("AdamW", amsgrad=True)("bitsandbytes.AdamW")
    with pytest.raises(ValueError, match=r"bitsandbytes.SGD has no nesterov=True, by which"):
        _back("SGD", nesterov=True)("bitsandbytes.SGD")
    with pytest.raises(ValueError, match=r"bitsandbytes.Lion has no maximize=True, by which"):
        _back("Lion", maximize=True)("bitsandbytes.Lion")
    with pytest.raises(ValueError, match=r"deepspeed.DeepSpeedCPUAdam has no caution=True"):
        _back("AdamW", caution=True)("deepspeed.DeepSpeedCPUAdam")
    with pytest.raises(ValueError, match=r"timm.Lamb has no clamp_value=3.0, by which"):
        _back("LAMB", clamp_value=3.0)("timm.Lamb")
    with pytest.raises(
        TypeError, match=r"Adam steps as fusedopt.AdamW does, as it is constructed with .'adam_w_mode': T"
    ):
        _back("Adam")("deepspeed.DeepSpeedCPUAdam")
    with pytest.raises(TypeError, match=r"bitsandbytes.Lion steps as fusedopt.Lion does, and this is a AdamW"):
        _back("AdamW")("bitsandbytes.Lion")
    with pytest.raises(TypeError, match=r"nothing is written for torchao.AdamW8bit; there is a way back to bitsandbyt"):
        _back("AdamW")("torchao.AdamW8bit")
    with pytest.raises(TypeError, match=r"fusedopt has no class with the rule of bitsandbytes.LAMB: "):
        _back("LAMB")("bitsandbytes.LAMB")
    with pytest.raises(TypeError, match=r"bitsandbytes.Lion has no 'adam_w_mode' beside its groups; give any of none"):
        _back("Lion")("bitsandbytes.Lion", adam_w_mode=True)
    with pytest.raises(TypeError, match=r"this is a AdamW; give one of ours, as fusedopt.replace\(\) makes it"):
        fusedopt.foreign_state_dict(torch.optim.AdamW(foreign_params()), "bitsandbytes.AdamW")


def test_one_number_of_steps_is_kept_for_a_group_there() -> None:
    ours = _ours("LAMB")
    ours.state[params_of(ours)[1]]["step"] += 2
    with pytest.raises(
        ValueError, match=r"timm.Lamb counts the steps of a group, and params of group 0 have taken .3, 5"
    ):
        fusedopt.foreign_state_dict(ours, "timm.Lamb")


def test_a_file_of_another_class_does_not_start_anew() -> None:
    ours = fusedopt.Lion(foreign_params())
    group = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "params": [0, 1, 2]}
    file = {"state": {0: {"momentum_buffer": torch.ones(5, 7)}}, "param_groups": [group]}
    with pytest.raises(ValueError, match=r"param 0 has .'momentum_buffer'., which timm.Lion does not keep, among"):
        fusedopt.load_foreign(ours, file, "timm.Lion")


# What files of other classes hold is told by keys of states and groups, and by shapes. For each class those of whose
# files it takes others', which a step cannot tell from its own; those that are the same rule go on as they would.
_ADAMS = {"deepspeed.DeepSpeedCPUAdam", "deepspeed.FusedAdam", "timm.RAdamLegacy", "timm.NAdamW"}
_BY_ONE_STATE = {f"bitsandbytes.{name}" for name in ("Lion", "SGD", "RMSprop", "Adagrad")}
ALIKE: dict[str, set[str]] = {
    # Without keys of its own in either.
    "timm.AdamWLegacy": _ADAMS,
    "timm.NAdamW": _ADAMS,
    "timm.RAdamLegacy": _ADAMS,
    "deepspeed.DeepSpeedCPUAdam": _ADAMS,
    "deepspeed.FusedAdam": _ADAMS,
    "torchao": _ADAMS,
    "torch_optimizer.Lamb": _ADAMS,
    "torch_optimizer.RAdam": _ADAMS,
    "bitsandbytes.Lion": {"bitsandbytes.SGD"},
    "bitsandbytes.SGD": {"bitsandbytes.Lion"},
    "bitsandbytes.RMSprop": _BY_ONE_STATE,
    "bitsandbytes.Adam": {"bitsandbytes.AdamW"},
    "bitsandbytes.AdamW": {"bitsandbytes.Adam"},
    "optimi.Adam": {"optimi.AdamW"},
    "optimi.AdamW": {"optimi.Adam"},
    "optimi.StableAdamW": {"optimi.Adam", "optimi.AdamW"},
    "schedulefree.RAdamScheduleFree": {"schedulefree.AdamWScheduleFree"},
    "timm.Lion": {"lion_pytorch.Lion", "pytorch_optimizer.Lion"},
    "lion_pytorch.Lion": {"pytorch_optimizer.Lion"},
    "pytorch_optimizer.Lion": {"lion_pytorch.Lion"},
    "timm.SGDW": {"apex.FusedSGD", "transformer_engine.FusedSGD"},
    "apex.FusedSGD": {"transformer_engine.FusedSGD"},
    "transformer_engine.FusedSGD": {"apex.FusedSGD"},
    "transformer_engine.FusedAdam": {"apex.FusedAdam"},
    "apex.FusedLAMB": {"timm.Lamb"},
    "timm.Lamb": {"apex.FusedLAMB"},
    "torch_optimizer.LARS": {"timm.Lars"},
    "transformers.Adafactor": {"torch_optimizer.Adafactor"},
}


def _plain(name: str) -> str:
    name = re.sub(r"Paged|8bit|32bit", "", name)
    return "torchao" if name.startswith("torchao") else name


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_file_is_taken_for_no_other_class_that_it_can_be_told_from(form: Form) -> None:
    whole = form.make(foreign_params(form.dtype))
    train(whole, 2)
    file, own = form.write(whole), _plain(registry.name_of(form.source))
    taken = set()
    for name, peer in registry.PEERS.items():
        rule = peer.rule if isinstance(peer.rule, str) else form.ours
        ours = getattr(fusedopt, rule)(foreign_params(form.dtype))
        before = snapshot(ours), dict(ours.param_groups[0])
        try:
            fusedopt.load_foreign(ours, file, name)
            taken.add(_plain(name))
        except (TypeError, ValueError):
            assert_identical(snapshot(ours), before[0])
            assert ours.param_groups[0] == before[1]
    assert {name for name in taken - {own} if own not in ALIKE.get(name, set())} == set()


def test_a_file_of_torchs_names_is_none_of_bitsandbytes() -> None:
    whole = fusedopt.AdamW(foreign_params())
    train(whole, 1)
    file = whole.state_dict()
    for name in ("Lion", "AdamW", "SGD", "AdEMAMix"):
        ours = getattr(fusedopt, name)(foreign_params())
        with pytest.raises(ValueError, match=r"which bitsandbytes.\w+ does not keep, among|its groups have"):
            fusedopt.load_foreign(ours, file, f"bitsandbytes.{name}")
        assert not ours.state


def test_a_state_of_another_shape_is_refused() -> None:
    """AdEMAMix has both averages in one tensor, and another model has other params."""
    ours = fusedopt.AdamW([Parameter(torch.zeros(3))])
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "params": [0]}
    file = {"state": {0: {"step": 1, "state1": torch.ones(2, 3), "state2": torch.ones(3)}}, "param_groups": [group]}
    with pytest.raises(
        ValueError, match=r"the state of param 0 has \[2, 3\] for 'exp_avg', and the param is \[3\]; give"
    ):
        fusedopt.load_foreign(ours, file, "bitsandbytes.AdamW")
    assert not ours.state


def test_a_group_without_what_every_class_has_is_refused() -> None:
    ours = fusedopt.AdamW(foreign_params())
    group = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.1, "params": [0, 1, 2]}
    with pytest.raises(
        ValueError, match=r"param_groups\[0\] of the file lacks 'betas', which bitsandbytes.AdamW has; give"
    ):
        fusedopt.load_foreign(ours, {"state": {}, "param_groups": [group]}, "bitsandbytes.AdamW")
    with pytest.raises(
        ValueError, match=r"param_groups\[0\] of the file lacks 'decouple_wd', which optimi.Adam has; give"
    ):
        fusedopt.load_foreign(ours, {"state": {}, "param_groups": [group]}, "optimi.Adam")
    file = {"state": {}, "param_groups": [{**group, "betas": (0.9, 0.99), "caution": False}]}
    with pytest.raises(ValueError, match=r"of the file is of timm by its keys, and not of torchao.AdamW8bit: \['betas"):
        fusedopt.load_foreign(ours, file, "torchao.AdamW8bit")


# What is refused.

_BNB = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
_LAMB = {**_BNB, "max_grad_norm": 1.0, "bias_correction": True, "grad_averaging": True}
_MARS = {**_BNB, "gamma": 0.025, "mars_type": "adamw", "optimize_1d": True, "caution": False}
_SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.1}
_KOZISTR = {**_BNB, "weight_decouple": True, "fixed_decay": False}
_ROWS = {**ADAFACTOR, "weight_decay": 0.0}
_TIMM = {**_ROWS, "eps": 1e-30, "eps_scale": 1e-3, "min_dim_size_to_factor": 16}
# Source, class of ours, group, what its constructor was given, and the line of maths.
REFUSED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    "bias correction": ("timm.Adan", "Adan", {**_BNB, "bias_correction": False}, {}, "with bias_correction=False it d"),
    "caution": ("timm.LaProp", "LaProp", {**_BNB, "caution": True}, {}, "with caution=True it leaves out elements"),
    "LARS's decay": ("timm.Lars", "LARS", {**_SGD, "decoupled_decay": True}, {}, "with decoupled_decay=True it dec"),
    "release": (
        "optimi.Lion",
        "Lion",
        {**_BNB, **OPTIMI, "beta1": 0.9, "beta2": 0.99, "gradient_release": True},
        {},
        "with gradient_release=True its states hold groups; fusedopt.step_in_backward",
    ),
    "beta1": ("transformers.Adafactor", "Adafactor", {**_ROWS, "beta1": 0.9}, {}, "it averages its updates by beta1"),
    "decay": ("transformers.Adafactor", "Adafactor", {**_ROWS, "weight_decay": 0.1}, {}, "decays p by weight_decay ti"),
    "small": ("timm.Adafactor", "Adafactor", _TIMM, {}, "it keeps the whole second moment of matrices with a side of"),
    "gc": ("pytorch_optimizer.Lion", "Lion", {**_KOZISTR, "use_gc": True}, {}, "subtracts the mean from gradients"),
    "fixed decay": ("pytorch_optimizer.Lion", "Lion", {**_KOZISTR, "fixed_decay": True}, {}, "with fixed_decay=True"),
    "still": ("pytorch_optimizer.RAdam", "RAdam", _KOZISTR, {}, "without degenerated_to_sgd params stand still in"),
    "threshold": (
        "pytorch_optimizer.RAdam",
        "RAdam",
        _KOZISTR,
        {"degenerated_to_sgd": True, "n_sma_threshold": 4},
        "it rectifies from n_sma_threshold=4 on, ours from 5",
    ),
    "no decay": (
        "pytorch_optimizer.RAdam",
        "RAdam",
        {**_KOZISTR, "weight_decouple": False},
        {"degenerated_to_sgd": True},
        "without weight_decouple it does not decay",
    ),
    "vectors": ("pytorch_optimizer.LARS", "LARS", _SGD, {}, "it leaves out ratio and decay of vectors and scalars"),
    "debias": ("torch_optimizer.Lamb", "LAMB", _BNB, {"debias": True}, "the bias correction is outside of the trust"),
    "adam": ("torch_optimizer.Lamb", "LAMB", _BNB, {"adam": True}, "with adam=True the trust ratio is 1"),
    "Lion's way": (
        "timm.Mars",
        "MARS",
        {**_MARS, "mars_type": "lion"},
        {},
        "with mars_type='lion' it steps by the sign of the average",
    ),
    "MARS's vectors": (
        "timm.Mars",
        "MARS",
        {**_MARS, "optimize_1d": False},
        {},
        "it steps vectors by AdamW, which takes an",
    ),
    "masters": ("apex.FusedAdam", "AdamW", _BNB, {"master_weights": True}, "its master weights are neither in its"),
    "after": ("apex.FusedSGD", "SGD", _SGD, {"wd_after_momentum": True}, "adds weight_decay [*] p to the momentum"),
    "TE's": ("transformer_engine.FusedSGD", "SGD", _SGD, {"wd_after_momentum": True}, "[*] p to the momentum, where"),
    "L2": ("apex.FusedLAMB", "LAMB", _LAMB, {"adam_w_mode": False}, "adds weight_decay [*] p to the gradient, where"),
}


@pytest.mark.parametrize(("source", "name", "group", "told", "line"), REFUSED.values(), ids=REFUSED)
def test_another_rule_is_refused_by_its_maths(
    source: str, name: str, group: dict[str, Any], told: dict[str, Any], line: str
) -> None:
    optimizer = getattr(fusedopt, name)(foreign_params())
    train(optimizer, 1)
    kept, numbers = snapshot(optimizer), dict(optimizer.param_groups[0])
    file = {"state": {}, "param_groups": [{**group, "params": [0, 1, 2]}]}
    match = rf"{source} does not step as fusedopt.{name} does, by its param_groups\[0\]: .*{line}"
    with pytest.raises(ValueError, match=match):
        fusedopt.load_foreign(optimizer, file, source, **told)
    assert_identical(snapshot(optimizer), kept)
    assert optimizer.param_groups[0] == numbers


def test_convolutions_of_timms_adafactor_are_refused() -> None:
    group = {**_TIMM, "params": [0]}
    optimizer = fusedopt.Adafactor([Parameter(torch.zeros(20, 20, 3, 3))])
    with pytest.raises(ValueError, match="of a tensor of more dimensions it factors the largest two, ours the last"):
        fusedopt.load_foreign(optimizer, {"state": {}, "param_groups": [group]}, "timm.Adafactor")


@pytest.mark.parametrize("name", registry.OTHERS)
def test_what_no_class_has_the_rule_of_is_refused(name: str) -> None:
    theirs = _live(name, foreign_params(), {"lr": 0.1})
    with pytest.raises(TypeError, match=f"fusedopt has no class with the rule of {name}: .*; construct one anew"):
        fusedopt.replace(theirs)
    with pytest.raises(TypeError, match=f"fusedopt has no class with the rule of {name}: "):
        fusedopt.load_foreign(fusedopt.SGD(foreign_params()), theirs.state_dict(), name)


def _load(name: str, source: str, sizes: int = 3, **told: Any) -> None:
    group = {**_BNB, "bias_correction": True, "params": list(range(sizes))}
    fusedopt.load_foreign(
        getattr(fusedopt, name)(foreign_params()), {"state": {}, "param_groups": [group]}, source, **told
    )


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"bitsandbytes.Adam steps as fusedopt.AdamW does; load its file into one of the"
    ):
        _load("Adam", "bitsandbytes.optim.Adam")
    with pytest.raises(TypeError, match=r"knows no optimizer lion_pytorch.Tiger; it knows lion_pytorch.Lion"):
        _load("Lion", "lion_pytorch.Tiger")
    with pytest.raises(TypeError, match=r"knows no optimizer zoo.Lion; it knows apex, bitsandbytes, deepspeed, "):
        _load("Lion", "zoo.Lion")
    with pytest.raises(TypeError, match=r"DeepSpeedCPUAdam has no 'adamw' beside its groups; .* \['adam_w_mode'\]"):
        _load("Adam", "deepspeed.DeepSpeedCPUAdam", adamw=False)
    with pytest.raises(TypeError, match="Lion has no 'maximize' beside its groups; give any of none"):
        _load("Lion", "timm.Lion", maximize=False)
    with pytest.raises(
        ValueError, match=r"the file has groups of \[2\] params, and the optimizer of \[3\]; give one o"
    ):
        _load("AdamW", "bitsandbytes.AdamW", sizes=2)


def test_without_a_decay_adam_and_adamw_are_one() -> None:
    group = {**_BNB, "weight_decay": 0, "params": [0, 1, 2]}
    optimizer = fusedopt.Adam(foreign_params())
    fusedopt.load_foreign(optimizer, {"state": {}, "param_groups": [group]}, "bitsandbytes.Adam8bit")
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_a_subclass_of_theirs_is_refused() -> None:
    base = _class("bitsandbytes.optim.adamw.AdamW")

    class Mine(base):  # type: ignore[misc, valid-type]
        pass

    with pytest.raises(TypeError, match=r"fusedopt has no replacement for .*Mine"):
        fusedopt.replace(Mine(foreign_params(), dict(_BNB)))
