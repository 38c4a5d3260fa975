"""The examples of docs/distributed.md, as they stand, in two processes."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from ranks import case
from sharded import require_fsdp_of_cpus

PAGE = (Path(__file__).parent.parent / "docs" / "distributed.md").read_text()


@case()
def examples_run_as_they_are_written(rank: int) -> None:
    require_fsdp_of_cpus()
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    torch.distributed.broadcast_object_list(folder)
    names: dict[str, object] = {"folder": folder[0]}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "distributed.md", "exec"), names)
    torch._dynamo.reset()


@case()
def every_wrapper_that_the_page_names_has_a_test(rank: int) -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    table = PAGE.partition("## What works")[2].partition("## What a step sends")[0]
    for name in re.findall(r"`(\w+)`", table):
        assert name in tests, name
