"""What each framework's slots came to, as a table in docs/compatibility.md: `make test-frameworks` renews it.

A test says of which slot it is: `@pytest.mark.slot("where", "package")`, and with `comes_to=` what has been found of
it, where that is not that it works.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from alone import find_alone  # noqa: E402

# timm asks for torchvision, whose build for this torch does not load beside a CPU build of it. What its factory imports
# of its models is for layer_decay alone.
find_alone("timm", "optim", "models")
sys.modules["timm.models"].group_parameters = None  # type: ignore[attr-defined]

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- frameworks -->\n", "<!-- /frameworks -->\n"
# (package, slot) -> what it comes to, and the outcomes of its tests.
_slots: dict[tuple[str, str], tuple[str, list[str]]] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slot(where, package, comes_to): the place of a framework that a test is about")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield  # type: ignore[misc]
    marker = item.get_closest_marker("slot")
    if marker is not None and (report.when == "call" or report.skipped or report.failed):
        where, package = marker.args
        found = _slots.setdefault((package, where), (marker.kwargs.get("comes_to", "works"), []))
        found[1].append(report.outcome)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    asked = session.config.args == [str(Path(__file__).parent)] or session.config.args == ["tests/frameworks"]
    if not asked or session.config.option.keyword or not _slots:
        return
    rows = ["| package | where | comes to | tests |\n", "|---|---|---|---|\n"]
    for (package, where), (comes_to, outcomes) in sorted(_slots.items()):
        passed, failed = outcomes.count("passed"), outcomes.count("failed")
        rows.append(f"| {package} {version(package)} | {where} | {'FAILS' if failed else comes_to} | {passed} |\n")
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(before + BEGIN + "".join(rows) + END + after)
