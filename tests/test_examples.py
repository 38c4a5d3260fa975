"""The demo trains for real, if briefly: both libraries must tell the same story and the picture must be drawn."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest

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
    console.print(digits.make_table(demo[0]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert all(f"{pair.largest_difference:.1e}" in text for pair in demo[0])


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
