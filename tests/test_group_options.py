"""Options of single groups: one optimizer keeps an embedding's states in float32 and the rest in 8 bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from options import same
from support import params_of, save_and_load
from torch import Tensor
from torch.nn import Parameter

import fusedopt
from fusedopt._core.group_options import OF_GROUPS

CLASSES = [
    getattr(fusedopt, name)
    for name in ("AdamW", "SGD", "Lion", "LAMB", "Adafactor", "Muon", "RMSprop")
    if hasattr(fusedopt, name)
]
SHAPES = [(64, 256), (32, 300), (5, 4)]
GROUPS: list[dict[str, Any]] = [
    {"state_dtype": "float32"},
    {"state_dtype": "int8", "master_weights": "float32"},
    {"ema_decay": 0.5, "rounding": "kahan"},
]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def groups_for(cls: Any) -> list[dict[str, Any]]:
    lacks = {"state_dtype"} if cls is fusedopt.Adafactor else set()
    return [{key: value for key, value in group.items() if key not in lacks} for group in GROUPS]


def make(cls: Any, groups: list[dict[str, Any]] | None = None, first: int = 0, **given: Any) -> Any:
    generator = torch.Generator().manual_seed(4)
    params = [Parameter(torch.randn(shape, generator=generator).bfloat16()) for shape in SHAPES]
    own = groups_for(cls) if groups is None else groups
    momentum = {"momentum": 0.9} if cls in (fusedopt.SGD, fusedopt.RMSprop) else {}
    chosen = [{"params": [p], **g} for p, g in zip(params, own, strict=True)]
    return cls(chosen[first:], lr=0.05, **momentum, **given)


def train(optimizer: Any, first: int = 0, count: int = 3) -> Any:
    for seed in range(first, first + count):
        for param in params_of(optimizer):
            generator = torch.Generator().manual_seed(1000 * seed + param.numel())
            param.grad = torch.randn(param.shape, generator=generator).bfloat16()
        optimizer.step()
    return optimizer


def states(optimizer: Any) -> list[dict[str, Any]]:
    return [{**optimizer.state[p], "param": p.detach()} for p in params_of(optimizer)]


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert same(a[key], b[key]), key


@every_class
def test_a_group_steps_as_an_optimizer_of_these_options_would(cls: Any) -> None:
    together = states(train(make(cls)))
    for index, options in enumerate(groups_for(cls)):
        alone = states(train(make(cls, [{}, {}, {}], **options)))
        assert_same(together[index], alone[index])


@every_class
def test_a_group_has_its_own_in_the_place_of_the_optimizers(cls: Any) -> None:
    own = [{}, {"rounding": "nearest", "master_weights": "remainder"}, {"rounding": "nearest"}]
    optimizer = train(make(cls, own, rounding="kahan"))
    assert [sorted({"compensation", "remainder"} & set(state)) for state in states(optimizer)] == [
        ["compensation"],
        ["remainder"],
        [],
    ]


@every_class
def test_they_are_saved_and_stay_the_optimizers_own(cls: Any) -> None:
    whole, saved = train(make(cls), count=5), train(make(cls))
    file = save_and_load(saved.state_dict())
    for group, options in zip(file["param_groups"], groups_for(cls), strict=True):
        assert {key: group[key] for key in OF_GROUPS if key in group} == options
    resumed = make(cls)
    for mine, theirs in zip(params_of(resumed), params_of(saved), strict=True):
        mine.data.copy_(theirs.data)
    resumed.load_state_dict(file)
    train(resumed, first=3, count=2)
    for a, b in zip(states(whole), states(resumed), strict=True):
        assert_same(a, b)
    # A file without them does not take them away, and one that has others does not bring these.
    plain = train(make(cls, [{}, {}, {}]))
    with pytest.warns(UserWarning, match="was saved under other options"):
        plain.load_state_dict(copy.deepcopy(file))
    assert not any(set(OF_GROUPS) & set(group) for group in plain.param_groups)
    resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    for group, options in zip(resumed.param_groups, groups_for(cls), strict=True):
        assert {key: group[key] for key in OF_GROUPS if key in group} == options


def test_the_factor_of_an_average_is_a_number_of_the_group() -> None:
    optimizer = train(make(fusedopt.AdamW, [{"ema_decay": 0.5}, {"ema_decay": 0.9}, {}]), count=1)
    before = [p.detach().float().clone() for p in params_of(optimizer)]
    optimizer.param_groups[0]["ema_decay"] = 0.25
    train(optimizer, first=1, count=1)
    for index, decay in [(0, 0.25), (1, 0.9)]:
        param = params_of(optimizer)[index]
        expected = before[index].lerp(param.detach().float(), 1 - decay)
        torch.testing.assert_close(optimizer.state[param]["ema"], expected)
    assert "ema" not in optimizer.state[params_of(optimizer)[2]]
    with optimizer.ema_parameters():
        assert same(params_of(optimizer)[0].detach(), optimizer.state[params_of(optimizer)[0]]["ema"].bfloat16())
    file = save_and_load(optimizer.state_dict())
    resumed = make(fusedopt.AdamW, [{"ema_decay": 0.5}, {"ema_decay": 0.9}, {}])
    resumed.load_state_dict(file)
    assert [group.get("ema_decay") for group in resumed.param_groups] == [0.25, 0.9, None]


@every_class
def test_what_states_are_stored_by_does_not_change(cls: Any) -> None:
    optimizer = train(make(cls))
    before = [{key: v.clone() if isinstance(v, Tensor) else v for key, v in s.items()} for s in states(optimizer)]
    for index, key, value in [(0, "rounding", "stochastic"), (2, "rounding", "nearest")]:
        old = optimizer.param_groups[index].get(key)
        optimizer.param_groups[index][key] = value
        with pytest.raises(ValueError, match=rf"param_groups\[{index}\] has come to have other options"):
            train(optimizer, count=1)
        if old is None:
            del optimizer.param_groups[index][key]
        else:
            optimizer.param_groups[index][key] = old
    del optimizer.param_groups[1]["master_weights"]
    with pytest.raises((RuntimeError, ValueError), match=r"other options|its state has a 'master', which its group's"):
        train(optimizer, count=1)
    for a, b in zip(states(optimizer), before, strict=True):
        assert_same(a, b)
    optimizer.param_groups[1]["master_weights"] = "float32"
    train(optimizer, count=1)


@every_class
def test_what_a_settled_step_would_leave_behind_is_refused(cls: Any) -> None:
    """Also where nothing else has changed since the last step."""
    optimizer = train(make(cls), count=4)
    before = [{key: v.clone() if isinstance(v, Tensor) else v for key, v in s.items()} for s in states(optimizer)]
    del optimizer.param_groups[1]["master_weights"]
    with pytest.raises((RuntimeError, ValueError), match=r"other options|its state has a 'master', which its group's"):
        train(optimizer, count=1)
    for a, b in zip(states(optimizer), before, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_what_is_deleted_from_a_group_is_missed(storage: str) -> None:
    """Roots in float16 would be taken for squares, and what is rounded by chance would stand still."""
    param = Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    optimizer = fusedopt.AdamW([{"params": [param], "state_dtype": storage, "ema_decay": 0.5}])
    # Nothing is stored by them yet.
    del optimizer.param_groups[0]["ema_decay"]
    train(optimizer, count=2)
    before = {key: v.clone() for key, v in optimizer.state[param].items() if isinstance(v, Tensor)}
    del optimizer.param_groups[0]["state_dtype"]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"param_groups\[0\] has come to have other options"):
            train(optimizer, count=1)
    assert all(same(optimizer.state[param][key], value) for key, value in before.items())
    optimizer.param_groups[0]["state_dtype"] = storage
    train(optimizer, count=1)
    assert optimizer.state[param]["step"] == 3


@every_class
def test_added_later(cls: Any) -> None:
    optimizer = train(make(cls, first=1))
    rest = make(cls)
    optimizer.add_param_group(rest.param_groups[0])
    train(optimizer)
    assert_same(states(optimizer)[2], states(train(rest))[0])


def test_a_new_param_is_not_taken_for_one_that_is_gone() -> None:
    """Whose address it may come to have."""
    optimizer = make(fusedopt.AdamW, [{}, {"rounding": "kahan"}, {}], state_dtype="bfloat16")
    train(optimizer, count=1)
    gone = optimizer.param_groups.pop(0)["params"].pop()
    del optimizer.state[gone]
    address = id(gone)
    del gone
    others: list[Parameter] = []
    while not others or id(others[-1]) != address:
        if len(others) == 1000:
            pytest.skip("no other came to have it")
        others.append(Parameter(torch.ones(5).bfloat16()))
    optimizer.add_param_group({"params": [others[-1]], "rounding": "stochastic"})
    train(optimizer, count=1)
    optimizer.param_groups[-1]["rounding"] = "nearest"
    with pytest.raises(ValueError, match=r"param_groups\[2\] has come to have other options"):
        train(optimizer, count=1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"state_dtype": "int7"}, "Invalid state_dtype: 'int7'"),
        ({"master_weights": "half"}, "Invalid master_weights: 'half'"),
        ({"rounding": "kahan", "master_weights": "float32"}, "use one of them"),
        ({"ema_decay": 2.0}, r"Invalid ema_decay: 2\.0"),
    ],
    ids=str,
)
def test_bad_options_of_a_group(options: dict[str, Any], text: str) -> None:
    optimizer = make(fusedopt.AdamW)
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [Parameter(torch.ones(3).bfloat16())], **options})
    assert len(optimizer.param_groups) == 3
    with pytest.raises(ValueError, match=text):
        fusedopt.AdamW([{"params": [Parameter(torch.ones(3).bfloat16())], **options}])


def test_master_weights_of_a_group_without_a_use_for_them() -> None:
    with pytest.raises(ValueError, match=r"master_weights='float32' is for params in 16 bits, and these are torch"):
        fusedopt.AdamW([{"params": [Parameter(torch.ones(3))], "master_weights": "float32"}])


def test_what_torch_alone_can_step_may_stand_beside_options() -> None:
    embedding, plain = torch.nn.Embedding(6, 3, sparse=True), Parameter(torch.ones(4).bfloat16())
    optimizer: Any = fusedopt.SGD(
        [{"params": embedding.parameters()}, {"params": [plain], "master_weights": "float32"}], lr=0.1
    )
    embedding(torch.tensor([2])).sum().backward()
    plain.grad = torch.ones_like(plain)
    optimizer.step()
    assert "master" in optimizer.state[plain]
    refused: Any = fusedopt.SGD([{"params": embedding.parameters(), "ema_decay": 0.5}, {"params": [plain]}], lr=0.1)
    before = plain.detach().clone()
    with pytest.raises(RuntimeError, match="param 0 of group 0: with its gradient it can only take torch's own step"):
        refused.step()
    assert same(plain.detach(), before)


def test_released_params_keep_their_groups_options() -> None:
    def network() -> torch.nn.Sequential:
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Linear(80, 4)).bfloat16()

    def optimizer_of(model: torch.nn.Sequential) -> Any:
        groups = [
            {"params": model[0].parameters(), "state_dtype": "int8"},
            {"params": model[1].parameters(), "master_weights": "float32", "ema_decay": 0.75},
        ]
        return fusedopt.AdamW(groups, lr=0.01)

    usual, released = network(), network()
    expected, ours = optimizer_of(usual), optimizer_of(released)
    with fusedopt.step_in_backward(released, ours):
        for seed in range(3):
            batch = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()
            usual(batch).float().square().sum().backward()
            expected.step()
            expected.zero_grad()
            released(batch).float().square().sum().backward()
    for a, b in zip(states(expected), states(ours), strict=True):
        assert_same(a, b)
