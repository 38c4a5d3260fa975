"""Who takes part in a benchmark: each adapter is right, says why it cannot, and is caught when it is wrong."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from judging import Pretend
from support import params_of

import fusedopt
from fusedopt.bench import baselines, kernel, oracle, selection
from fusedopt.bench.baselines import (
    BASELINES,
    COMPILED,
    FOREIGN,
    FUSED,
    GRAPHED,
    LOOP,
    OURS,
    OURS_GRAPHED,
    Call,
    Foreign,
)
from fusedopt.bench.clock import Cpu
from fusedopt.bench.contest import Contest
from fusedopt.bench.entrants import Entrant, Stage, enter
from fusedopt.bench.kernel import KERNEL, OneTensor
from fusedopt.bench.method import warm_up
from fusedopt.bench.networks import NETWORKS
from fusedopt.bench.placement import LAYOUTS, place
from fusedopt.bench.suites import SUITES

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """torch wakes all of them for every tiny tensor, which on a busy machine takes longer than the test."""
    torch.set_num_threads(1)


def contest_of(optimizer: str, dtype: torch.dtype = torch.float32, **more: Any) -> Contest:
    suite = SUITES["embedding" if optimizer == "SparseAdam" else "1000x64"]
    return Contest(suite, optimizer, (), more.pop("arguments", selection.ARGUMENTS.get(optimizer, {})), dtype, **more)


def able(contest: Contest) -> list[str]:
    """Those of torch's and ours that can take part without a compiler."""
    names = [name for name in BASELINES if name not in {COMPILED, *(foreign.name for foreign in FOREIGN)}]
    return [name for name in names if not BASELINES[name].lacks(contest, CPU)]


@pytest.mark.parametrize("optimizer", selection.OPTIMIZERS)
def test_every_implementation_is_right(optimizer: str) -> None:
    contest = contest_of(optimizer)
    names = able(contest)
    assert OURS in names
    assert len(names) > 2 or not hasattr(torch.optim, optimizer)
    assert oracle.verify(contest, names, Cpu()) == dict.fromkeys(names, "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("optimizer", ["AdamW", "RMSprop", "Lion"])
def test_every_implementation_is_right_in_other_dtypes(optimizer: str, dtype: torch.dtype) -> None:
    contest = contest_of(optimizer, dtype)
    names = able(contest)
    assert oracle.verify(contest, names, Cpu()) == dict.fromkeys(names, "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torchs_fused_sgd_in_16_bits_is_found_wrong(dtype: torch.dtype) -> None:
    """Its CPU kernel moves only the ends of a tensor."""
    verdicts = oracle.verify(contest_of("SGD", dtype), [OURS, LOOP, FUSED], Cpu())
    assert verdicts[OURS] == verdicts[LOOP] == ""
    assert verdicts[FUSED].startswith("wrong: after 6 steps ")
    assert "% of the elements of a tensor of shape (1027,) are off by up to 1 times its" in verdicts[FUSED]


def test_torchs_fused_adamw_over_strides_is_found_wrong() -> None:
    """It reads transposed gradients as if they were contiguous where params are not laid out alike."""
    verdicts = oracle.verify(contest_of("AdamW", layout="strided"), [OURS, LOOP, FUSED], Cpu())
    assert verdicts[OURS] == verdicts[LOOP] == ""
    assert verdicts[FUSED].startswith("wrong: ")


def test_a_small_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One element of one tensor, by a hundredth of a step."""
    made = baselines.Torch.make

    def flawed(self: baselines.Torch, contest: Contest, groups: list[Any]) -> torch.optim.Optimizer:
        optimizer = made(self, contest, groups)
        if self.name == LOOP and groups[0].dtype == torch.float32:
            optimizer.register_step_post_hook(lambda *_: groups[1].data[3, 5].add_(1e-5))
        return optimizer

    monkeypatch.setattr(baselines.Torch, "make", flawed)
    verdicts = oracle.verify(contest_of("AdamW"), [OURS, LOOP], Cpu())
    assert verdicts[OURS] == ""
    assert "of a tensor of shape (33, 65) are off" in verdicts[LOOP]


def test_what_raises_has_failed() -> None:
    """torch's fused step takes no state of another dtype than its param's."""
    contest = contest_of("AdamW", torch.bfloat16, state_dtype=torch.float32)
    verdicts = oracle.verify(contest, [OURS, FUSED], Cpu())
    assert verdicts[OURS] == ""
    assert verdicts[FUSED].startswith("failed: ")


@pytest.mark.parametrize(
    ("name", "contest", "device", "reason"),
    [
        (FUSED, contest_of("RMSprop"), "cpu", "torch.optim.RMSprop has no fused"),
        (LOOP, contest_of("Lion"), "cpu", "torch.optim has no Lion"),
        (GRAPHED, contest_of("AdamW"), "cpu", "runs on CUDA only"),
        (OURS_GRAPHED, contest_of("AdamW"), "cpu", "runs on CUDA only"),
        (OURS_GRAPHED, contest_of("AdamW"), "cuda", ""),
        (COMPILED, contest_of("AdamW"), "cpu", "compiling a step over more than 20 tensors takes minutes"),
        (
            COMPILED,
            replace(contest_of("AdamW"), suite=SUITES["8x256"], groups=2),
            "cpu",
            "is given one learning rate, a tensor, and the groups have several",
        ),
        ("apex", contest_of("AdamW"), "cpu", "runs on cuda only"),
        ("DeepSpeed", contest_of("AdamW"), "cuda", "runs on cpu only"),
        ("bitsandbytes", contest_of("Rprop"), "cpu", "has no Rprop"),
        ("optimi", contest_of("AdamW", arguments={"amsgrad": True}), "cpu", "its AdamW has no amsgrad"),
    ],
)
def test_who_cannot_take_part_says_why(name: str, contest: Contest, device: str, reason: str) -> None:
    assert BASELINES[name].lacks(contest, torch.device(device)) == reason


def test_packages_that_are_not_there_are_absent() -> None:
    gone = Foreign("Gone", "surely_not_installed", "surely_not_installed.optim", {})
    assert gone.absent() == "not installed"
    for name, reason in baselines.absent().items():
        assert name in BASELINES
        assert reason


def test_a_package_of_the_same_name_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the package index, apex is a toolkit for Pyramid."""
    monkeypatch.setitem(sys.modules, "namesake", types.ModuleType("namesake"))
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda _: True)
    other = Foreign("Namesake", "namesake", "namesake.optimizers", {"AdamW": Call("FusedAdam", ())})
    assert other.absent().startswith("cannot be imported: ")


class Peer(torch.optim.SGD):
    """Another package's optimizer, with defaults of its own."""

    def __init__(self, params: Any, rate: str, lr: float = 5.0, weight_decay: float = 7.0) -> None:
        assert rate == "constant"
        super().__init__(params, lr=lr, weight_decay=weight_decay)


def test_an_adapter_gives_our_defaults_and_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("peer")
    module.Plain = Peer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "peer", module)
    foreign = Foreign("peer", "peer", "peer", {"SGD": Call("Plain", ("lr", "weight_decay"), {"rate": "constant"})})
    monkeypatch.setitem(BASELINES, "peer", foreign)
    contest = contest_of("SGD", arguments={"lr": 1e-3})
    entrant = Stage(oracle.small(contest), CPU).entrant("peer")
    assert isinstance(entrant.optimizer, Peer)
    assert entrant.optimizer.param_groups[0]["lr"] == 1e-3
    assert entrant.optimizer.param_groups[0]["weight_decay"] == 0
    assert oracle.verify(contest, ["peer"], Cpu()) == {"peer": ""}


@pytest.mark.parametrize("name", [foreign.name for foreign in FOREIGN])
def test_installed_packages_are_right(name: str) -> None:
    if BASELINES[name].absent():
        pytest.skip(BASELINES[name].absent())
    for optimizer in BASELINES[name].calls:  # type: ignore[attr-defined]
        contest = contest_of(optimizer)
        if not BASELINES[name].lacks(contest, CPU):
            assert oracle.verify(contest, [name], Cpu()) == {name: ""}


def test_the_compiled_step_has_a_tensor_as_learning_rate() -> None:
    contest = replace(contest_of("AdamW"), suite=SUITES["8x256"])
    entrant = Stage(contest, CPU).entrant(COMPILED)
    assert isinstance(entrant.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert float(entrant.optimizer.param_groups[0]["lr"]) == pytest.approx(1e-3)


def test_graphs_get_new_gradients_in_the_same_tensors() -> None:
    contest = Contest(SUITES["8x256"], "AdamW", (OURS_GRAPHED,), fresh=True)
    entrants, contestants = enter(contest, Pretend())
    warm_up(contestants, 1)
    graphed, plain = entrants[OURS_GRAPHED].params[0], entrants[OURS].params[0]
    assert graphed.grad is not None
    assert plain.grad is not None
    before = graphed.grad, graphed.grad.clone(), plain.grad
    warm_up(contestants, 3)
    assert graphed.grad is before[0]
    assert not graphed.grad.equal(before[1])
    assert plain.grad is not before[2]
    assert graphed.grad.equal(plain.grad)


@pytest.mark.parametrize(
    ("contest", "reason"),
    [
        (contest_of("AdamW"), ""),
        (contest_of("AdamW", torch.bfloat16, state_dtype=torch.float32), ""),
        (contest_of("RMSprop", layout="strided"), ""),
        (contest_of("SGD", arguments={}), ""),
        (contest_of("SGD"), ""),
        (contest_of("AdamW", arguments={"amsgrad": True}), ""),
        (contest_of("AdamW", layout="transposed"), "one flat tensor cannot be transposed"),
        (contest_of("NAdam"), ""),
        (contest_of("LAMB"), "a step takes more than one plain pass"),
        (contest_of("Adafactor"), "a step takes more than one plain pass"),
        (contest_of("SparseAdam"), "a step takes more than one plain pass"),
    ],
    ids=lambda value: value.name if isinstance(value, Contest) else "",
)
def test_what_has_one_tensor_for_a_rival(contest: Contest, reason: str) -> None:
    assert kernel.kernel_lacks(contest, CPU) == reason


def test_one_tensor_has_all_elements_of_the_suite() -> None:
    contest = Contest(SUITES["8x256"], "AdamW", (KERNEL,))
    _, contestants = enter(contest)
    (alone,) = (c for c in contestants if c.name == KERNEL)
    assert isinstance(alone.call, OneTensor)
    (param,) = params_of(alone.call.optimizer)
    assert param.numel() == 2048
    before = param.detach().clone()
    alone.call()
    assert not before.equal(param)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (6, 7), (9,), ()])
def test_layouts_hold_the_same_values(layout: str, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape)
    placed = place(value, layout)
    assert placed.equal(value)
    assert placed.data_ptr() != value.data_ptr()
    if layout == "transposed" and len(shape) >= 2:
        assert placed.stride(-2) == 1
    if layout == "channels-last" and len(shape) == 4:
        assert placed.is_contiguous(memory_format=torch.channels_last)
    if layout == "misaligned":
        assert placed.data_ptr() % 16 == 4
    if layout == "strided" and shape:
        assert placed.stride(-1) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_lie_as_their_params_do(layout: str) -> None:
    entrant: Entrant = Stage(oracle.small(contest_of("AdamW", layout=layout)), CPU).entrant(OURS)
    entrant.prepare()
    for param in entrant.params:
        assert param.grad is not None
        assert param.grad.stride() == param.stride()


@pytest.mark.parametrize(("groups", "sizes"), [(1, [8]), (3, [2, 3, 3]), (8, [1] * 8), (99, [1] * 8)])
def test_params_are_split_into_groups(groups: int, sizes: list[int]) -> None:
    entrants, _ = enter(Contest(SUITES["8x256"], "AdamW", (), groups=groups))
    found = entrants[OURS].optimizer.param_groups
    assert [len(group["params"]) for group in found] == sizes
    assert len({group["lr"] for group in found}) == len(sizes)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_shapes_that_its_suite_says(name: str) -> None:
    network = NETWORKS[name]
    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in network.make().parameters()]
    assert sorted(shapes) == sorted(network.suite.shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_param_of_a_network_gets_a_gradient(name: str) -> None:
    network = NETWORKS[name]
    made = network.make()
    images = torch.randn(2, 3, network.image, network.image)
    torch.nn.functional.cross_entropy(made(images), torch.tensor([1, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in made.parameters())


def test_arguments_and_optimizers_are_known() -> None:
    assert set(selection.ARGUMENTS) <= set(selection.OPTIMIZERS)
    assert "GenericOptimizer" not in selection.OPTIMIZERS
    for name in selection.OPTIMIZERS:
        assert issubclass(getattr(fusedopt, name), torch.optim.Optimizer)
