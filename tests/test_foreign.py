"""Files and live optimizers of other packages go on in ours; tests/peers runs the packages themselves."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import FORMS, Form, foreign_params, live
from support import assert_identical, give_grads, params_of, train
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


def test_a_live_one_is_replaced_and_its_schedule_goes_on() -> None:
    params = [Parameter(torch.ones(4, dtype=torch.bfloat16)), Parameter(torch.ones(2, dtype=torch.bfloat16))]
    defaults = {"lr": 0.5, "bias_correction": True, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    theirs = live(
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
    theirs = live("torchao.optim.adam.AdamW8bit", params, defaults, bf16_stochastic_round=stochastic)
    ours: Any = fusedopt.replace(theirs)
    assert ours.rounding == ("stochastic" if stochastic and dtype == torch.bfloat16 else "nearest")


def test_the_norm_that_timm_clips_at_is_its_constructors() -> None:
    defaults = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0, "max_grad_norm": 3.0}
    theirs = live("timm.optim.lamb.Lamb", foreign_params(), defaults)
    theirs.param_groups[0]["max_grad_norm"] = 1.0
    ours: Any = fusedopt.replace(theirs)
    assert ours.max_grad_norm == 3.0
