"""The comparison with the packages that rules come from: what it measures, what it leaves out and does not time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import alone
import originals
import pytest
from references import twin

import fusedopt


def _run(tmp_path: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    out = tmp_path / "originals.json"
    status = originals.main(["--quick", "--only", "NAdamW", "--out", str(out), *arguments])
    return status, json.loads(out.read_text())["findings"]


def test_every_rule_is_of_a_class_of_ours_with_arguments_that_it_takes() -> None:
    for rule in originals.RULES:
        getattr(fusedopt, rule.ours)(originals.params([(2, 2)]), **rule.called)
    names = [str(rule) for rule in originals.RULES]
    assert len(names) == len(set(names))


def test_both_are_measured_in_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(originals, "original", lambda rule: twin(rule.ours))
    status, findings = _run(tmp_path)
    assert status == 0
    assert [found["suite"] for found in findings] == ["33.5 M", "1000 x 256"]
    for found in findings:
        assert set(found["rounds"]) == {"fusedopt", "fusedopt again", "original", "bare loop"}
        assert found["faster"]["value"] == found["medians"]["original"] / found["medians"]["fusedopt"]


def test_another_rule_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(originals, "original", lambda rule: twin("Lion"))
    status, findings = _run(tmp_path)
    assert status == 1
    assert all("apart after a step" in found["failed"] and "rounds" not in found for found in findings)


def test_what_is_not_installed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(rule: Any) -> Any:
        raise ModuleNotFoundError("No module named 'timm'")

    monkeypatch.setattr(originals, "original", missing)
    assert _run(tmp_path) == (0, [])
    assert "is left out: No module named 'timm'" in capsys.readouterr().out


def test_a_package_without_an_installation_cannot_be_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'nobodys_package'"):
        alone.find_alone("nobodys_package", "optim")


def test_the_table_in_the_docs_is_of_the_file() -> None:
    root = Path(__file__).parent.parent
    page = (root / "docs/moving-in.md").read_text()
    table = page.partition("<!-- originals -->")[2].partition("<!-- /originals -->")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]
    findings = json.loads((root / "benchmarks/results/originals-20261129.json").read_text())["findings"]
    assert len(rows) == len(originals.RULES) == len(findings) / 2
    for ours, theirs, floors, large, small in rows:
        name, _, argument = ours.partition("(")
        first, second = (
            found
            for found in findings
            if found["rule"].startswith(f"{name}(") and argument.rstrip(")") in found["rule"]
        )
        module, _, cls = first["original"].rpartition(".")
        assert theirs == f"{module.partition('.')[0]}.{cls}"
        assert (first["suite"], second["suite"]) == ("33.5 M", "1000 x 256")
        found = (first["floors"], first["faster"]["value"], second["faster"]["value"])
        assert (floors, large, small) == (f"{found[0]:.2f}", f"{found[1]:.1f}x", f"{found[2]:.1f}x")
