"""A progress bar on stderr: the contests of a run, and the rounds of the measurement in progress."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from .runner import Watcher


class Bar(Watcher):
    def __init__(self, contests: int) -> None:
        columns = (TextColumn("{task.description:<32}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.whole = self.progress.add_task("all", total=contests)
        self.task: TaskID | None = None

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def begin(self, name: str, rounds: int) -> None:
        self.task = self.progress.add_task(name, total=rounds)

    def tick(self) -> None:
        if self.task is not None:
            self.progress.advance(self.task)

    def end(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = None

    def done(self) -> None:
        self.progress.advance(self.whole)
