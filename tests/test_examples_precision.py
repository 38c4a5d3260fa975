"""The comparison of precisions trains for real, if briefly, and its verdict can go either way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiers import slow

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

import precision

import fusedopt

COURSE = precision.Course(steps=12, evaluations=3, seeds=2)
VARIANTS = precision.VARIANTS
trains = slow("that options and dtypes arrive is another test's, and what they do to a step is the optimizers'")


@pytest.fixture(scope="module")
def results() -> list[precision.Result]:
    return precision.run(VARIANTS, COURSE, workers=2)


def made(finals: dict[str, list[float]]) -> list[precision.Result]:
    """Results with these last losses, one for each seed."""
    variants = {variant.name: variant for variant in precision.VARIANTS}
    return [precision.Result(variants[name], np.array([[5.0, x] for x in last])) for name, last in finals.items()]


@trains
def test_every_variant_learns_from_every_seed(results: list[precision.Result]) -> None:
    assert [result.variant for result in results] == list(VARIANTS)
    for result in results:
        assert result.losses.shape == (2, 4)
        assert (result.losses[:, -1] < result.losses[:, 0] - 0.1).all(), result.variant.name
        # Before the first step there is only the rounding of the weights between two variants.
        np.testing.assert_allclose(result.losses[:, 0], results[0].losses[:, 0], rtol=1e-3)
        assert np.ptp(result.final) > 0
    assert all((precision.behind(result, results)[:, -1] != 0).all() for result in results[1:])


@trains
def test_shrinking_gradients_show_averages_that_stand_still(results: list[precision.Result]) -> None:
    sizes = {result.variant.name: result.size_of_steps for result in results}
    assert sizes["float32"] == 1
    assert sizes["bfloat16, naive"] < 0.5
    assert all(abs(sizes[variant.name] - 1) < 0.1 for variant in VARIANTS if variant.remedy)


@trains
def test_a_training_can_be_repeated(results: list[precision.Result]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert precision.train(results[1].variant, COURSE, seed=1) == results[1].losses[1].tolist()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("variant", precision.VARIANTS, ids=lambda variant: variant.name)
def test_options_and_dtypes_reach_the_optimizer(variant: precision.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[dict[str, Any], set[torch.dtype]]] = []

    class Recording(torch.optim.SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, lr=options.pop("lr"))
            options.pop("weight_decay")
            self.options = options

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            params = self.param_groups[0]["params"]
            assert all(p.grad is not None and p.grad.dtype == p.dtype for p in params)
            given.append((self.options, {p.dtype for p in params}))

    monkeypatch.setattr(fusedopt, "AdamW", Recording)
    precision.train(variant, precision.Course(steps=1, evaluations=1, seeds=1), seed=0)
    assert given == [(variant.options, {variant.dtype})]


@pytest.mark.parametrize("variant", precision.VARIANTS, ids=lambda variant: variant.name)
def test_options_are_ones_that_the_optimizer_has(variant: precision.Variant) -> None:
    fusedopt.AdamW([torch.nn.Parameter(torch.zeros(3, dtype=variant.dtype))], **variant.options)


def test_text_is_split_by_module() -> None:
    names = precision.MODULES.split()
    assert len(set(names)) == len(names)
    training, validation = precision.load(False), precision.load(True)
    assert len(training) > 5 * len(validation) > 500_000
    assert b"class ArgumentParser" in bytes(validation.tolist())
    assert b"class ArgumentParser" not in bytes(training.tolist())


def test_windows_shift_by_one_byte() -> None:
    text, following = precision.windows(torch.arange(200), torch.tensor([0, 135]))
    assert text[:, 0].tolist() == [0, 135]
    assert torch.equal(following, text + 1)
    assert following[1, -1] == 199


def test_the_model_sees_no_later_byte() -> None:
    torch.manual_seed(0)
    model = precision.LanguageModel()
    text = torch.randint(256, (1, precision.CONTEXT))
    changed = text.clone()
    changed[0, 40] = (changed[0, 40] + 1) % 256
    same = (model(text) == model(changed)).all(-1)[0]
    assert same.tolist() == [True] * 40 + [False] * (precision.CONTEXT - 40)


def test_evaluations_begin_and_end_with_the_training() -> None:
    assert precision.Course(steps=400, evaluations=20, seeds=1).evaluated == list(range(0, 401, 20))
    assert precision.Course(steps=3, evaluations=20, seeds=1).evaluated == [0, 1, 2, 3]


def test_a_verdict_goes_either_way() -> None:
    reference, naive, remedy = (precision.VARIANTS[i].name for i in (0, 1, 3))
    good = {reference: [2.0, 2.02], naive: [2.1, 2.12], remedy: [2.01, 2.02]}
    assert precision.complaints(made(good)) == []
    (weak,) = precision.complaints(made({**good, naive: [2.01, 2.03]}))
    assert weak == f"{naive}: +0.0100 from float32, which is within the 0.0200 between seeds"
    (lost,) = precision.complaints(made({**good, remedy: [2.03, 2.05]}))
    assert lost == f"{remedy}: +0.0300 from float32, beyond the 0.0200 between seeds"
    assert len(precision.complaints(made({**good, remedy: [float("nan"), 2.0]}))) == 1
    assert len(precision.complaints(made({**good, naive: [float("nan"), 2.0]}))) == 0
    small = [dataclasses.replace(result, size_of_steps=0.25) for result in made(good)]
    assert precision.complaints(small) == [f"{remedy}: steps of 0.25 after gradients have shrunk"]


@trains
def test_command_draws_and_records(
    results: list[precision.Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(precision, "run", lambda *arguments: asked.append(arguments) or results)
    monkeypatch.setattr(precision.Course, "evaluated", COURSE.evaluated)
    out = tmp_path / "new" / "precision.png"
    arguments = ["--steps", "12", "--seeds", "2", "--workers", "3", "--out", str(out)]
    monkeypatch.setattr(precision, "complaints", lambda _: ["a remedy failed"])
    assert precision.main(arguments) == 1
    assert asked == [(precision.VARIANTS, precision.Course(12, 20, 2), 3)]
    printed = capsys.readouterr()
    assert "a remedy failed" in printed.err
    assert all(f"{result.mean:.4f}" in printed.out for result in results)
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert 20_000 < len(content) < 400_000
    file = json.loads(out.with_suffix(".json").read_text())
    assert file["losses"] == {result.variant.name: result.losses.tolist() for result in results}
    assert 300_000 < file["params"] < 1_000_000
    monkeypatch.setattr(precision, "complaints", lambda _: [])
    assert precision.main(arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--seeds", "1"], "--seeds must be at least 2"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--out", "curves.bmp"], "--out must end in .png"),
    ],
)
def test_command_refuses_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        precision.parse(arguments)
    assert message in capsys.readouterr().err


def test_command_refuses_a_folder_it_cannot_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        precision.parse(["--out", str(tmp_path / "file" / "precision.png")])
    assert "cannot make the folder" in capsys.readouterr().err


def test_a_python_without_its_sources_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(SystemExit, match=r"cannot read the standard library's sources: .*argparse\.py"):
        precision.load.__wrapped__(True)
