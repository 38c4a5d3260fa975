"""Cases that run in several processes, all that need as many of them in the same ones, one after the other."""

from __future__ import annotations

import datetime
import importlib
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
# What takes most of a process's start is imported once, by one that is forked for each rank. It has run nothing, so
# that there are no threads of its own to miss; the package is not in it, for which some have another engine.
ONCE = ["torch._dynamo", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "hypothesis", "pytest"]
SKIPPED = "skipped: "
# Of each case the number of processes, and the case itself.
CASES: dict[str, tuple[int, Callable[[int], None]]] = {}


def case(ranks: int = 2) -> Callable[[Callable[[int], None]], Callable[[int], None]]:
    """Have a function of a rank be run by every one of so many processes."""

    def register(run: Callable[[int], None]) -> Callable[[int], None]:
        CASES[run.__name__] = (ranks, run)
        return run

    return register


def run_all(ranks: int, modules: Iterable[str], folder: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """What each case said on the way to its failure, by its name; empty if it passed. `names`: of them alone.

    A case that fails ends its processes; those after it run in new ones. What the installed torch lacks is
    skipped: `SKIPPED` and the reason.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs gloo")
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    left = [name for name, (count, _) in CASES.items() if count == ranks and (names is None or name in names)]
    multiprocessing.set_forkserver_preload(ONCE)
    told: dict[str, str] = {}
    while left:
        its = folder / str(len(left))
        its.mkdir()
        crash = _start(ranks, tuple(modules), left, its)
        began = any(path.name != "store" for path in its.iterdir())
        for name in left.copy():
            told[name] = _told([its / f"{name}-{rank}" for rank in range(ranks)], crash)
            left.remove(name)
            # Of processes that end before any case does, others would be no better.
            if began and told[name] and not told[name].startswith(SKIPPED):
                break
    return told


def _start(ranks: int, modules: tuple[str, ...], wanted: list[str], folder: Path) -> str:
    """Why the processes did not come to their end; empty if they did."""
    context: Any = torch.multiprocessing.start_processes(
        _process, (ranks, modules, wanted, str(folder)), nprocs=ranks, join=False, start_method="forkserver"
    )
    try:
        while not context.join(timeout=5):
            pass
    except Exception as error:
        return str(error)
    return ""


def _told(paths: list[Path], crash: str) -> str:
    texts = [path.read_text() if path.exists() else f"did not come to an end. {crash}" for path in paths]
    if texts[0].startswith(SKIPPED) and len(set(texts)) == 1:
        return texts[0]
    return "\n".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text)


def _process(rank: int, ranks: int, modules: tuple[str, ...], wanted: list[str], folder: str) -> None:
    for module in modules:
        importlib.import_module(module)
    torch.set_num_threads(1)
    # A rank that fails leaves others waiting.
    patience = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=patience
    )
    for name in wanted:
        torch.manual_seed(0)
        try:
            CASES[name][1](rank)
        except pytest.skip.Exception as reason:
            (Path(folder) / f"{name}-{rank}").write_text(f"{SKIPPED}{reason}")
            continue
        except BaseException:
            (Path(folder) / f"{name}-{rank}").write_text(traceback.format_exc())
            # What the others are in the middle of cannot be joined again.
            raise
        (Path(folder) / f"{name}-{rank}").write_text("")
    torch.distributed.destroy_process_group()
