"""Write the newest results into the README: its figures are generated, never typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def newest() -> Path:
    return max((ROOT / "benchmarks" / "results").glob("*.json"))


def row(finding: dict[str, Any]) -> str:
    measured, unit = finding["measured"], finding["unit"]
    times = [f"{finding[key]:.3g}" if finding[key] is not None else "" for key in ("theirs_ms", "ours_ms")]
    interval = "" if measured["low"] == measured["high"] else f" ({measured['low']:.2f} to {measured['high']:.2f})"
    bound = "at most" if finding["at_most"] else "at least"
    cells = [
        finding["measurement"],
        finding["against"],
        *times,
        f"{measured['value']:.2f}{unit}{interval}",
        f"{bound} {finding['asked']:g}{unit}: {finding['verdict']}",
    ]
    return f"| {' | '.join(cells)} |"


def figures(path: Path) -> str:
    report = json.loads(path.read_text())
    machine = report["machine"]
    lines = [
        "| workload | against | theirs, ms | ours, ms | measured (90 % interval) | goal |",
        "|---|---|---|---|---|---|",
        *(row(finding) for finding in report["findings"]),
        "",
        f"{machine['cpu']}, {machine['threads']} threads, {machine['fusedopt']['cpu']['chosen']}, "
        f"torch {machine['torch']}, {machine['date'][:10]}; raw rounds in `{path.relative_to(ROOT)}`.",
    ]
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{figures(newest())}\n{END}{after}")


if __name__ == "__main__":
    main()
