"""python -m tests.walk --minutes 10: walks without end, and what fell."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from multiprocessing import get_context

import torch

from .runner import Walk, walk_on


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.walk", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to walk (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first walk; the next has the next one")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with seeds of its own")
    parser.add_argument("--replay", metavar="JSON", help="run one walk as a failure has printed it")
    parser.add_argument("--stop", action="store_true", help="at the first failure")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.replay:
        outcome = Walk.from_json(given.replay).run()
        print(outcome)
        return int(outcome.error is not None)
    parts = [(given.seed + job, given.jobs, given.minutes, given.stop) for job in range(given.jobs)]
    if given.jobs == 1:
        counts = [walk_on(*parts[0])]
    else:
        with get_context("spawn").Pool(given.jobs) as pool:
            counts = pool.starmap(walk_on, parts)
    total = sum(counts, Counter())
    print(f"{total['walks']} walks, {total['operations']} operations, {total['failures']} failures")
    return int(total["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
