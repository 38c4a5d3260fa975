"""The gallery trains for real, if briefly: every optimizer is in it, and what should be one curve is."""

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiers import slow

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

import compare_optimizers as gallery

import fusedopt

STEPS = 20


@pytest.fixture(scope="module")
def data() -> gallery.Data:
    return gallery.make_data(0)


@pytest.fixture(scope="module")
def pairs(data: gallery.Data) -> list[gallery.Pair]:
    return gallery.run(gallery.optimizer_names(), data, STEPS)


def test_every_optimizer_is_there(pairs: list[gallery.Pair]) -> None:
    public = {name: getattr(fusedopt, name) for name in fusedopt.__all__}
    optimizers = {n for n, v in public.items() if inspect.isclass(v) and issubclass(v, torch.optim.Optimizer)}
    assert {pair.name for pair in pairs} == optimizers - {"GenericOptimizer"}


def test_base_classes_are_no_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusedopt, "__all__", ["SGD", "GenericOptimizer", "Base", "replace", "WeightDecay"])
    monkeypatch.setattr(fusedopt, "Base", torch.optim.Optimizer, raising=False)
    assert gallery.optimizer_names() == ["SGD"]


def test_only_what_torch_lacks_has_no_twin(pairs: list[gallery.Pair]) -> None:
    assert {pair.name for pair in pairs if pair.torch is None} == {
        pair.name for pair in pairs if not hasattr(torch.optim, pair.name)
    }


def test_everyone_learns(pairs: list[gallery.Pair]) -> None:
    for pair in pairs:
        assert pair.ours.losses.shape == (STEPS + 1,)
        assert pair.ours.losses[-1] < 0.9 * pair.ours.losses[0], f"{pair.name}: give it a learning rate in ARGUMENTS"
        assert np.isfinite(pair.ours.fit).all()


def test_twins_agree(pairs: list[gallery.Pair]) -> None:
    for pair in pairs:
        assert pair.complaint is None
        if pair.torch is not None:
            assert pair.apart < 1.001, pair.name
            np.testing.assert_allclose(pair.ours.fit, pair.torch.fit, atol=0.01, err_msg=pair.name)


def test_twins_are_two_classes(pairs: list[gallery.Pair]) -> None:
    """A comparison of torch with torch would agree as well."""
    for pair in pairs:
        network = gallery.make_network(pair.name)
        libraries = (fusedopt, torch.optim) if pair.torch is not None else (fusedopt,)
        made = [gallery.make_optimizers(library, pair.name, network) for library in libraries]
        for optimizers, package in zip(made, ("fusedopt", "torch"), strict=False):
            assert {type(optimizer).__module__.partition(".")[0] for optimizer in optimizers} == {package}
            held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
            assert {id(p) for p in held} == {id(p) for p in network.parameters()}


def test_an_optimizer_that_insists_on_a_closure_is_trained(data: gallery.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    class LBFGS(torch.optim.LBFGS):
        pass

    monkeypatch.setattr(fusedopt, "LBFGS", LBFGS, raising=False)
    (pair,) = gallery.run(["LBFGS"], data, 20)
    assert pair.ours.losses[-1] < 2 * data.floor
    assert pair.complaint is None


def test_batches_hold_all_points_once_an_epoch() -> None:
    batches = gallery.make_batches("SGD", 25, seed=0)
    assert len(batches) == 25
    for epoch in (batches[:10], batches[10:20]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(gallery.POINTS))
    assert all(len(batch) == gallery.POINTS for batch in gallery.make_batches("Rprop", 3, seed=0))


def one_off(pair: gallery.Pair, factor: float) -> gallery.Pair:
    losses = pair.ours.losses.copy()
    losses[3] *= factor
    return replace(pair, ours=replace(pair.ours, losses=losses))


@pytest.mark.parametrize(("factor", "words"), [(1.1, "by a factor of 1.1"), (0.9, "1.11"), (np.nan, "is not finite")])
def test_a_curve_that_differs_visibly_is_told(pairs: list[gallery.Pair], factor: float, words: str) -> None:
    (pair,) = [pair for pair in pairs if pair.name == "Adam"]
    complaint = one_off(pair, factor).complaint
    assert complaint is not None
    assert complaint.startswith("Adam: the loss ")
    assert words in complaint
    assert one_off(pair, 1.01).complaint is None


@slow("two pictures take longer to draw than all that other tests look at here")
def test_command_draws_and_succeeds(
    pairs: list[gallery.Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gallery, "run", lambda *_: pairs)
    assert gallery.main(["--out", str(tmp_path / "new" / "folder")]) == 0
    printed = capsys.readouterr().out
    for pair in pairs:
        assert pair.name in printed
    for name in (gallery.FITS, gallery.LOSS):
        content = (tmp_path / "new" / "folder" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert 50_000 < len(content) < 20_000 * len(pairs)


def test_command_fails_if_twins_differ(
    pairs: list[gallery.Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gallery, "run", lambda *_: [one_off(pair, 1.5) for pair in pairs if pair.name == "SGD"])
    assert gallery.main(["--out", str(tmp_path)]) == 1
    assert "SGD: the loss curves of fusedopt and torch differ visibly" in capsys.readouterr().err


def test_legend_names_what_has_no_twin(pairs: list[gallery.Pair], data: gallery.Data) -> None:
    legend = gallery.plot_fits(pairs, data).axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["data", "fusedopt", "torch.optim"]
    assert "not in torch.optim" in legend.get_title().get_text()
    named = legend.get_title().get_text().partition(":")[2].replace(",", " ").split()
    assert sorted(named) == sorted(pair.name for pair in pairs if pair.torch is None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "0"], "--steps must be at least 1"), (["--seed", "-1"], "--seed must be")],
)
def test_command_refuses_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gallery.parse(arguments)
    assert message in capsys.readouterr().err


def test_command_refuses_a_folder_it_cannot_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(SystemExit, match="2"):
            gallery.parse(["--out", str(folder)])
        assert "cannot make the folder" in capsys.readouterr().err
