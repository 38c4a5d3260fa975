"""Where a run's results go: a folder with the JSON and the pictures."""

from __future__ import annotations

from pathlib import Path

from .extras import require
from .report import BenchError, Report

RESULTS = "results.json"


class Output:
    """A folder that can be written, which is found out before anything is measured."""

    def __init__(self, folder: Path, plots: bool = True) -> None:
        if plots:
            require("matplotlib")
        self.folder = folder
        self.path = folder / RESULTS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text("")
        except OSError as error:
            raise BenchError(f"cannot write {self.path}: {error.strerror}; choose another folder") from error

    def save(self, report: Report) -> None:
        self.path.write_text(report.as_json())

    def draw(self, report: Report) -> list[Path]:
        from .plots import save_plots

        return save_plots(report, self.folder)
