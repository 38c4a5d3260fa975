"""What ours write for other packages is what these read."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER
from foreign import foreign_params
from support import assert_identical, params_of, save_and_load, train
from torch.nn import Parameter

import fusedopt
from fusedopt._peers import registry

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


@pytest.mark.parametrize("name", [name for name in WAYS_BACK if ".Paged" not in name])
def test_another_rule_is_refused_by_what_it_lacks(name: str) -> None:
    """Of every class, with states or without: a momentum, a second average, a count of steps."""
    for case in ONE_PER_OPTIMIZER:
        for steps in (0, 1):
            optimizer: Any = case.ours(foreign_params())
            train(optimizer, steps)
            with warnings.catch_warnings(), suppress(TypeError, ValueError):
                warnings.simplefilter("ignore")
                fusedopt.foreign_state_dict(optimizer, name)


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
    with pytest.warns(UserWarning, match="whatever a file says; construct it with max_grad_norm=2.0"):
        file = fusedopt.foreign_state_dict(lamb, "timm.Lamb")
    assert file["param_groups"][0]["max_grad_norm"] == 2.0


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
    with pytest.raises(TypeError, match=r"this is a torch.AdamW; give one of ours, as fusedopt.replace\(\) makes it"):
        fusedopt.foreign_state_dict(torch.optim.AdamW(foreign_params()), "bitsandbytes.AdamW")


def test_one_number_of_steps_is_kept_for_a_group_there() -> None:
    ours = _ours("LAMB")
    ours.state[params_of(ours)[1]]["step"] += 2
    with pytest.raises(
        ValueError, match=r"timm.Lamb counts the steps of a group, and params of group 0 have taken .3, 5"
    ):
        fusedopt.foreign_state_dict(ours, "timm.Lamb")


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("name", ["bitsandbytes.AdamW", "deepspeed.DeepSpeedCPUAdam"])
def test_complex_states_are_not_halved(name: str) -> None:
    param = Parameter(torch.ones(3, dtype=torch.complex64))
    ours = fusedopt.AdamW([param])
    train(ours, 1)
    with pytest.raises(ValueError, match=rf"{name} keeps real numbers alone, and param 0 is complex"):
        fusedopt.foreign_state_dict(ours, name)
