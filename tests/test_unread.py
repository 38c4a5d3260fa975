"""What a newer torch's constructors put into groups is done by torch's own step or refused by name, never left out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from support import assert_close, assert_identical, give_grads, make_params, params_of, save_and_load, snapshot, train
from torch.nn import Parameter
from torch.optim import lr_scheduler

import fusedopt
from fusedopt import _C
from fusedopt._core.arguments import Options
from fusedopt._core.optimizer import FusedStep
from fusedopt._core.standalone import Standalone
from fusedopt._core.unread import Unread, unread_by

TWINS = [name for name in fusedopt.__all__ if inspect.isclass(getattr(torch.optim, name, None))]
# Beside the hyper-parameters of the rule.
FLAGS = {"maximize", "differentiable", "capturable", "foreach", "fused"}


@pytest.mark.parametrize("name", TWINS)
def test_steps_read_all_that_the_installed_torch_puts_into_groups(name: str) -> None:
    ours, torchs = getattr(fusedopt, name), getattr(torch.optim, name)
    arguments = set(inspect.signature(torchs).parameters) - {"params"}
    group = set(torchs([Parameter(torch.zeros(2, 2))]).param_groups[0]) - {"params"}
    reads = set(getattr(ours, "_reads", ()))
    if not reads:
        reads = FLAGS | {hyper.partition(".")[0] for hyper in _C.rules()[ours._rule]["hypers"]}
    assert arguments <= reads
    assert group <= reads
    # Choices are looked at in each step, all else costs nothing.
    choices = {"Muon": ["adjust_lr_fn"], "LBFGS": ["maximize"]}.get(name, [])
    assert (list(ours._unread._defaults) if ours._unread else []) == choices


def test_optimizers_that_torch_does_not_have_leave_nothing_unread() -> None:
    for cls in Standalone.__subclasses__():
        assert cls._unread is None


class Newer(torch.optim.AdamW):
    """AdamW of a torch to come, whose steps can be of one size in all elements."""

    calls: ClassVar[list[int]] = []

    def __init__(self, params: Any, lr: float = 1e-3, *, sign_only: bool = False, **kwargs: Any) -> None:
        super().__init__(params, lr, **kwargs)
        for group in [self.defaults, *self.param_groups]:
            group.setdefault("sign_only", sign_only)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        self.calls.append(len(self.param_groups))
        for group in self.param_groups:
            for p in group["params"]:
                if group["sign_only"] and p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
                    self.state[p]["step"] = self.state[p].get("step", torch.tensor(0.0)) + 1
        if not any(group["sign_only"] for group in self.param_groups):
            super().step(closure)


class Fused(FusedStep, Newer):
    """Ours, which is older."""

    _rule = "adam"
    _rule_defaults: ClassVar = {"decoupled_weight_decay": True, "bias_correction": True, "caution": False}

    def __init__(self, params: Any, lr: float = 1e-3, *, sign_only: bool = False, **options: Any) -> None:
        super().__init__(params, {"lr": lr, "sign_only": sign_only}, options=Options(**options))


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    Newer.calls.clear()


def test_only_the_argument_itself_is_unread() -> None:
    assert Fused._unread is not None
    assert Fused._unread._defaults == {"sign_only": False}
    assert unread_by(Fused, FusedStep, {"lr": None, "sign_only": None}) is None


def test_at_its_default_the_step_is_ours() -> None:
    ours, plain = Fused(make_params()), fusedopt.AdamW(make_params())
    train(ours)
    train(plain)
    assert_identical(snapshot(ours), snapshot(plain))
    assert Newer.calls == []


def test_any_other_value_goes_to_torchs_own_step() -> None:
    ours, torchs = (cls(make_params(), lr=0.1, sign_only=True) for cls in (Fused, Newer))
    train(ours)
    assert len(Newer.calls) == 3
    train(torchs)
    assert_identical(snapshot(ours), snapshot(torchs))
    ours.param_groups[0]["sign_only"] = False
    ours.state.clear()
    Newer.calls.clear()
    train(ours)
    assert Newer.calls == []


def test_the_whole_optimizer_goes_there() -> None:
    groups = [{"params": make_params(), "sign_only": True}, {"params": make_params(seed=1)}]
    ours = Fused(copy.deepcopy(groups), lr=0.1)
    train(ours, 1)
    assert Newer.calls == [2]


def test_a_closure_is_run_and_gradients_are_zeroed() -> None:
    ours = Fused(make_params(), lr=0.1, sign_only=True)

    def closure() -> float:
        give_grads(params_of(ours), 0)
        return 3.0

    assert ours.step(closure, zero_grad=True) == 3.0
    assert all((p.grad == 0).all() for p in params_of(ours))


@pytest.mark.parametrize("first", ["ours first", "torch's first"])
def test_gradients_are_unscaled_and_overflows_skipped(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours: Any = Fused(make_params(), lr=0.1)
    if first == "ours first":
        train(ours, 1)
        assert not ours.step_skipped
    ours.param_groups[0]["sign_only"] = True
    before = snapshot(ours)
    ours.grad_scale, ours.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    give_grads(params_of(ours), 1)
    ours.step()
    assert_identical(snapshot(ours), before)
    assert ours.step_skipped
    ours.found_inf = torch.tensor(0.0)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(Newer, "step", lambda self, _=None: seen.extend(p.grad.clone() for p in params_of(self)))
    ours.step()
    assert not ours.step_skipped
    assert_identical(seen, [p.grad / 4 for p in params_of(ours)])


def test_gradients_are_clipped() -> None:
    class Descent(torch.optim.SGD):
        def __init__(self, params: Any, lr: float, doubled: bool = False) -> None:
            super().__init__(params, lr)
            for group in self.param_groups:
                group.setdefault("doubled", doubled)

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p in params_of(self):
                p.data.sub_(p.grad, alpha=2 * self.param_groups[0]["lr"])

    class Ours(FusedStep, Descent):
        _rule = "sgd"

        def __init__(self, params: Any, lr: float, doubled: bool, max_grad_norm: float) -> None:
            super().__init__(params, {"lr": lr, "doubled": doubled}, options=Options(max_grad_norm))

    p = Parameter(torch.ones(2))
    ours = Ours([p], lr=1.0, doubled=True, max_grad_norm=0.5)
    p.grad = torch.tensor([3.0, 4.0])
    ours.step()
    assert ours.grad_norm == 5.0
    torch.testing.assert_close(p.detach(), torch.tensor([0.4, 0.2]))
    assert p.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    "options",
    [
        {"state_dtype": "int8"},
        {"master_weights": "float32"},
        {"rounding": "stochastic"},
        {"ema_decay": 0.9},
    ],
    ids=str,
)
def test_with_options_it_is_refused_by_name(options: dict[str, Any]) -> None:
    ours = Fused(make_params(dtype=torch.bfloat16), sign_only=True, **options)
    before = snapshot(ours)
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]\['sign_only'\] is True, which only torch's own step"):
        train(ours, 1)
    assert_identical(snapshot(ours), before)
    assert Newer.calls == []


def test_with_copies_it_is_refused_by_name() -> None:
    ours = Fused(make_params(), sign_only=True)
    ours.copy_params_to({p: torch.zeros_like(p, dtype=torch.bfloat16) for p in params_of(ours)})
    with pytest.raises(RuntimeError, match=r"'sign_only'\] is True, .* copies of params"):
        train(ours, 1)


def test_keys_of_users_and_schedulers_are_theirs() -> None:
    ours, plain = Fused(make_params()), fusedopt.AdamW(make_params())
    for optimizer in (ours, plain):
        optimizer.param_groups[0].update(name="backbone", lr_scale=0.5, swa_lr=0.1, array=torch.ones(3))
        schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
        train(optimizer, 2)
        schedule.step()
    assert_identical(snapshot(ours), snapshot(plain))
    assert Newer.calls == []


def test_values_that_cannot_be_compared_are_not_the_default() -> None:
    unread = Unread(Newer, {})
    assert unread.find([{"sign_only": torch.ones(3)}]) is not None
    assert unread.find([{"sign_only": torch.tensor(False)}]) is None


def test_after_loading_a_checkpoint_of_the_newer_class() -> None:
    torchs, ours = Newer(make_params(), lr=0.1, sign_only=True), Fused(make_params())
    train(torchs, 1)
    train(ours, 0)
    with torch.no_grad():
        for p, q in zip(params_of(ours), params_of(torchs), strict=True):
            p.copy_(q)
    ours.load_state_dict(save_and_load(torchs.state_dict()))
    train(ours, 2, first=1)
    train(torchs, 2, first=1)
    assert_close(ours, torchs)


def test_after_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "Newer", Newer, raising=False)
    members = {"_rule": "adam", "_rule_defaults": Fused._rule_defaults, "__module__": "fusedopt.newer"}
    cls = type("Newer", (FusedStep, Newer), members)
    torchs, whole = (Newer(make_params(), lr=0.1, sign_only=True) for _ in range(2))
    ours = fusedopt.replace(torchs)
    assert type(ours) is cls
    train(ours)
    train(whole)
    assert_identical(snapshot(ours), snapshot(whole))


def test_in_backward() -> None:
    def run(cls: Any, release: bool) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = cls(model.parameters(), lr=0.1, sign_only=True)
        if release:
            fusedopt.step_in_backward(model, optimizer)
        for _ in range(2):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    assert_identical(run(Fused, True), run(Newer, False))


# What torch 2.14 added.

NEW: bool = torch.__version__ >= (2, 14)  # type: ignore[operator]
SINCE_2_14 = pytest.mark.skipif(not NEW, reason="torch has it from 2.14 on")
BEFORE_2_14 = pytest.mark.skipif(NEW, reason="torch has it from 2.14 on")
HAS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")


@SINCE_2_14
@pytest.mark.parametrize("shape", [(12, 3), (3, 12), (5, 5)], ids=str)
def test_muon_unclamped(shape: tuple[int, int]) -> None:
    made = []
    for module in (fusedopt, torch.optim):
        p = Parameter(torch.ones(shape))
        optimizer = module.Muon([p], lr=0.1, adjust_lr_fn="spectral_unclamped")
        train(optimizer, 2)
        made.append(p)
    torch.testing.assert_close(*made, rtol=0, atol=0.1 * 2 * 6 * 2**-6)
    assert (made[0] - 1).norm() > 0.1


@BEFORE_2_14
@HAS_MUON
def test_muon_refuses_what_the_installed_torch_does_not_know() -> None:
    with pytest.raises(ValueError, match="spectral_unclamped is not supported"):
        fusedopt.Muon(make_params([(2, 3)]), adjust_lr_fn="spectral_unclamped")


@HAS_MUON
@pytest.mark.parametrize("name", ["orignal", pytest.param("spectral_unclamped", marks=BEFORE_2_14)])
def test_muon_refuses_a_name_in_a_group(name: str) -> None:
    ours = fusedopt.Muon(make_params([(2, 3)]))
    ours.param_groups[0]["adjust_lr_fn"] = name
    before = snapshot(ours)
    with pytest.raises(ValueError, match=rf"param_groups\[0\]\['adjust_lr_fn'\] is '{name}', which Muon of torch 2"):
        train(ours, 1)
    assert_identical(snapshot(ours), before)


@HAS_MUON
def test_a_name_that_torch_alone_knows_goes_to_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedopt.optimizers import muon as muon_module

    def muon(module: Any) -> Any:
        optimizer = module.Muon(make_params([(8, 3)]), lr=0.1, adjust_lr_fn="match_rms_adamw")
        train(optimizer, 2)
        return optimizer

    unread = Unread(torch.optim.Muon, {**fusedopt.Muon._reads, "adjust_lr_fn": (None, "original")})
    monkeypatch.setattr(fusedopt.Muon, "_unread", unread)
    monkeypatch.setattr(muon_module, "_multiply", None)
    assert_identical(snapshot(muon(fusedopt)), snapshot(muon(torch.optim)))


def _bowl(optimizer: torch.optim.Optimizer, sign: float) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        x = torch.cat([p.flatten() for p in params_of(optimizer)])
        loss = sign * ((x - 1) ** 2 * torch.arange(1.0, len(x) + 1) + (x**4) / 8).sum()
        loss.backward()
        return loss

    return closure


@SINCE_2_14
@pytest.mark.parametrize("options", [{"lr": 0.01}, {"line_search_fn": "strong_wolfe"}], ids=["fixed", "strong_wolfe"])
def test_lbfgs_ascends(options: dict[str, Any]) -> None:
    for most in (1, 2, 5, 20):
        made, losses = [], []
        for module, sign in ((fusedopt, -1.0), (torch.optim, -1.0), (fusedopt, 1.0)):
            params = [p.double() for p in make_params([(3, 2), (4,)])]
            up = {"maximize": True} if sign < 0 else {}
            optimizer = module.LBFGS([Parameter(p.detach()) for p in params], max_iter=most, **options, **up)
            losses.append([sign * optimizer.step(_bowl(optimizer, sign)).item() for _ in range(3)])
            made.append(optimizer)
        ours, torchs, down = made
        for p, q, r in zip(*map(params_of, made), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
            assert_identical(p.detach(), r.detach())
        mine, theirs = (o.state[o._params[0]] for o in (ours, torchs))
        assert (mine["func_evals"], mine["n_iter"]) == (theirs["func_evals"], theirs["n_iter"])
        for key in ("d", "prev_flat_grad"):
            torch.testing.assert_close(mine[key], theirs[key], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(float(mine["prev_loss"]), float(theirs["prev_loss"]))
        assert losses[0] == losses[2]
        assert ours.state_dict().keys() == down.state_dict().keys()


@SINCE_2_14
def test_lbfgs_ascends_where_torch_steps() -> None:
    p = Parameter(torch.tensor([1.0], dtype=torch.bfloat16))  # which no engine takes
    ours = fusedopt.LBFGS([p], lr=0.25, max_iter=1, maximize=True)

    def closure() -> torch.Tensor:
        ours.zero_grad()
        (2 * p).sum().backward()
        return (2 * p).sum()

    ours.step(closure)
    assert p.item() > 1


@BEFORE_2_14
def test_lbfgs_refuses_to_ascend() -> None:
    with pytest.raises(TypeError, match="maximize"):
        fusedopt.LBFGS(make_params([(2,)]), maximize=True)  # type: ignore[call-arg]
    ours = fusedopt.LBFGS(make_params([(2,)]))
    ours.param_groups[0]["maximize"] = False  # as a file of a newer torch has it
    ours.step(_bowl(ours, 1.0))
    ours.param_groups[0]["maximize"] = True
    before = snapshot(ours)
    with pytest.raises(TypeError, match=r"param_groups\[0\]\['maximize'\] is True, which LBFGS of torch 2\..* set it"):
        ours.step(_bowl(ours, 1.0))
    assert_identical(snapshot(ours), before)


def test_lbfgs_refuses_another_line_search() -> None:
    ours = fusedopt.LBFGS(make_params([(2,)]), line_search_fn="armijo")
    with pytest.raises(
        RuntimeError, match=r"only 'strong_wolfe' is supported: .*\['line_search_fn'\] is 'armijo'; set"
    ):
        ours.step(_bowl(ours, 1.0))
    assert not ours.state
