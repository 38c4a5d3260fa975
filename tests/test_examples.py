"""The demo trains for real, if briefly: both libraries must tell the same story and the picture must be drawn."""

import copy
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fusedopt

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

import digits
from rich.console import Console


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[digits.Pair], Path]:
    out = tmp_path_factory.mktemp("demo") / "new" / "digits.png"
    return digits.main(["--epochs", "1", "--out", str(out)]), out


def test_demo_covers_every_optimizer(demo: tuple[list[digits.Pair], Path]) -> None:
    pairs, _ = demo
    assert [pair.name for pair in pairs] == ["SGD", "Adam", "AdamW", "RMSprop"]


def test_demo_curves_agree_with_torch(demo: tuple[list[digits.Pair], Path]) -> None:
    for pair in demo[0]:
        assert pair.ours.losses.shape == (23,)
        np.testing.assert_allclose(pair.ours.losses, pair.torch.losses, rtol=1e-4, err_msg=pair.name)
        assert pair.ours.final_loss == pytest.approx(pair.torch.final_loss, rel=1e-3)
        assert pair.ours.test_accuracy == pytest.approx(pair.torch.test_accuracy, abs=0.01)


def test_demo_table_fits_into_a_log(demo: tuple[list[digits.Pair], Path]) -> None:
    """80 columns are what a pipe has; beyond them figures would be cut, and the differences are the last columns."""
    console = Console(width=80, file=StringIO())
    # On a machine that has other work to do a step may take long.
    slow = [replace(pair, torch=replace(pair.torch, step_seconds=np.array([0.098765]))) for pair in demo[0]]
    console.print(digits.make_table(slow))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert all(f"{pair.largest_difference:.1e}" in text for pair in demo[0])


def test_steps_of_the_demo_are_as_near_to_float64_as_torchs() -> None:
    """RMSprop's curves come apart by more than the others'. It is none of its steps that does it."""
    data, settings = digits.load(0), digits.OPTIMIZERS["RMSprop"]
    torch.manual_seed(0)
    network = digits.make_network()
    params = list(network.parameters())
    theirs = torch.optim.RMSprop(params, **settings)
    off: dict[str, list[torch.Tensor]] = {"torch": [], "ours": []}
    for batch in torch.randperm(len(data.train_images)).split(digits.BATCH):
        theirs.zero_grad()
        F.cross_entropy(network(data.train_images[batch]), data.train_labels[batch]).backward()
        exact, sizes = one_step_in_double(theirs)
        twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
        ours = fusedopt.RMSprop(twins, **settings)
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        for twin, param in zip(twins, params, strict=True):
            twin.grad = param.grad
        ours.step()
        theirs.step()
        for name, stepped in (("torch", params), ("ours", twins)):
            off[name] += [((p - e).abs() / u).flatten() for p, e, u in zip(stepped, exact, sizes, strict=True)]
    torchs, mine = (torch.cat(off[name]) for name in ("torch", "ours"))
    assert 0.1 < mine.mean() <= 1.001 * torchs.mean()
    assert mine.max() <= torchs.max() + 1


def one_step_in_double(optimizer: torch.optim.Optimizer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Where RMSprop's next step leads, and a unit in the last place of the larger of param and step."""
    (group,) = optimizer.param_groups
    exact, units = [], []
    for param in group["params"]:
        grad, before = param.grad.double(), param.detach().double()
        average = optimizer.state[param]["square_avg"].double() if optimizer.state[param] else torch.zeros_like(grad)
        average = group["alpha"] * average + (1 - group["alpha"]) * grad**2
        step = group["lr"] * grad / (average.sqrt() + group["eps"])
        exact.append(before - step)
        units.append(torch.maximum(before.abs(), step.abs()).clamp_min(1e-20) * torch.finfo(torch.float32).eps)
    return exact, units


def test_demo_network_learns(demo: tuple[list[digits.Pair], Path]) -> None:
    for pair in demo[0]:
        assert pair.ours.final_loss < pair.ours.losses[0], pair.name


def test_demo_uses_fusedopt() -> None:
    """Swapping the import must swap the class: a demo of torch against torch would agree as well."""
    assert digits.fusedopt.AdamW.__module__.startswith("fusedopt")
    assert digits.fusedopt.AdamW.step is not digits.torch.optim.AdamW.step


def test_demo_draws_a_png(demo: tuple[list[digits.Pair], Path]) -> None:
    content = demo[1].read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--seed", "-1"], "--seed must be"),
        (["--out", "curves.bmp"], "--out must end in .png"),
    ],
)
def test_demo_refuses_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        digits.parse(arguments)
    assert message in capsys.readouterr().err


def test_demo_refuses_a_folder_it_cannot_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        digits.parse(["--out", str(tmp_path / "file" / "digits.png")])
    assert "cannot make the folder" in capsys.readouterr().err


def test_running_mean_is_centred() -> None:
    steps, means = digits.smooth(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 3)
    assert steps.tolist() == [2.0, 3.0, 4.0]
    assert means == pytest.approx([2.0, 3.0, 4.0])
