"""torch.compile around training: a step is called as it is, at one break of the graph, whatever is compiled around."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case
from support import assert_identical, give_grads, make_params, params_of, snapshot, train
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fusedopt


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))


def compiled(function: Any) -> tuple[Any, list[Any]]:
    """A function that runs the graphs that dynamo makes, and these."""
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    return torch.compile(function, backend=backend), graphs


def frames() -> int:
    """How many frames dynamo has looked at."""
    return int(counters["frames"]["total"])


MAKES: dict[str, Any] = {
    "plain": lambda ps: fusedopt.AdamW(ps, lr=0.01),
    "options": lambda ps: fusedopt.AdamW(ps, lr=0.01, max_grad_norm=0.1, ema_decay=0.9),
    "alone": lambda ps: fusedopt.LAMB(ps, lr=0.01),
    "tensor": lambda ps: fusedopt.SGD(ps, lr=torch.tensor(0.01)),
}


def training(name: str) -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    """A model, its optimizer, and a step of training, which returns the loss."""
    its = model()
    optimizer = MAKES[name](its.parameters())
    x = torch.linspace(-1, 1, 24).view(3, 8)

    def step() -> Tensor:
        loss: Tensor = its(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(zero_grad=True)
        return loss

    return its, optimizer, step


@pytest.mark.parametrize("name", MAKES)
def test_a_train_step(name: str) -> None:
    """The forward pass is compiled, the step is not, and a learning rate that changes compiles nothing anew."""
    ends = []
    for by_compiler in (True, False):
        its, optimizer, step = training(name)
        run, graphs = compiled(step) if by_compiler else (step, [])
        seen = []
        for i in range(6):
            optimizer.param_groups[0]["lr"] *= 1 - 0.1 * i
            run()
            seen.append(frames())
        ends.append([p.detach() for p in its.parameters()])
        if by_compiler:
            assert len(graphs) == 1
            assert seen[2:] == [seen[2]] * 4
    assert_identical(*ends)


@pytest.mark.parametrize("name", ["plain", "options"])
def test_cuda_graphs_are_made_of_what_is_compiled_and_a_step_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """mode="reduce-overhead": inductor is asked to capture the forward pass alone, and a step is made at each call."""
    import torch._inductor.compile_fx as inductor

    asked: list[tuple[torch.fx.GraphModule, dict[str, Any]]] = []

    def compile_fx(graph: torch.fx.GraphModule, inputs: list[Any], *rest: Any, config_patches: Any, **more: Any) -> Any:
        asked.append((graph, dict(config_patches)))
        return graph.forward

    monkeypatch.setattr(inductor, "compile_fx", compile_fx)
    ends = []
    for by_compiler in (True, False):
        its, optimizer, step = training(name)
        run = torch.compile(step, mode="reduce-overhead") if by_compiler else step
        for i in range(4):
            run()
            # What a capture would have taken along as it was.
            optimizer.param_groups[0]["lr"] *= 1 - 0.1 * i
        ends.append([p.detach() for p in its.parameters()])
    assert [patches["triton.cudagraphs"] for _, patches in asked] == [True]
    called = {str(node.target) for node in asked[0][0].graph.nodes if node.op.startswith("call")}
    assert not any(name.endswith("_") for name in called)
    assert_identical(*ends)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_a_step_alone(case: Case) -> None:
    ours, expected = (case.ours(make_params([(4, 3), (67,)])) for _ in range(2))
    run, graphs = compiled(ours.step)
    for i in range(3):
        give_grads(params_of(ours), i)
        run()
    train(expected, 3)
    assert not graphs
    assert_identical(snapshot(ours), snapshot(expected))


def test_backward_that_steps() -> None:
    """The hooks of params are called as they are."""
    ends = []
    for by_compiler in (True, False):
        its = model()
        optimizer = fusedopt.AdamW(its.parameters(), lr=0.01, ema_decay=0.9)
        x = torch.linspace(-1, 1, 24).view(3, 8)

        def step(its: Any = its, x: Tensor = x) -> None:
            its(x).square().mean().backward()

        run, graphs = compiled(step) if by_compiler else (step, [])
        with fusedopt.step_in_backward(its, optimizer):
            seen = []
            for _ in range(5):
                run()
                seen.append(frames())
        ends.append([p.detach() for p in its.parameters()])
        if by_compiler:
            assert len(graphs) == 1
            assert seen[2:] == [seen[2]] * 3
    assert_identical(*ends)


def test_a_whole_graph_is_refused_with_a_sentence() -> None:
    optimizer = fusedopt.AdamW(make_params())
    give_grads(params_of(optimizer), 0)
    before = snapshot(optimizer)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="untraced"):
        torch.compile(optimizer.step, backend="eager", fullgraph=True)()
    assert_identical(snapshot(optimizer), before)
    assert "compile without fullgraph=True, or call step" in fusedopt._core.untraced.untraced._torchdynamo_disable_msg  # type: ignore[attr-defined]


def test_hooks_overrides_and_closures_run_once() -> None:
    class Counted(fusedopt.SGD):
        calls = 0

        def step(self, *args: Any, **kwargs: Any) -> Any:
            type(self).calls += 1
            return super().step(*args, **kwargs)

    for cls in (fusedopt.SGD, Counted):
        params = make_params([(3,)])
        optimizer = cls(params, lr=0.1)
        seen: list[int] = []
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append(1))

        def closure(params: Any = params, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = params[0].square().sum()
            loss.backward()
            return loss

        run, _ = compiled(optimizer.step)
        losses = [run(closure) for _ in range(3)]
        assert losses[2] < losses[1] < losses[0]
        assert len(seen) == 3
    assert Counted.calls == 3


def test_lbfgs() -> None:
    ends = []
    for by_compiler in (True, False):
        params = make_params([(3,)])
        optimizer = fusedopt.LBFGS(params, lr=0.5)

        def closure(params: Any = params, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = params[0].pow(4).sum()
            loss.backward()
            return loss

        run = compiled(optimizer.step)[0] if by_compiler else optimizer.step
        for _ in range(2):
            run(closure)
        ends.append(params[0].detach())
    assert_identical(*ends)
