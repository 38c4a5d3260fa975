"""Breaks a copy of the package in one way after the other and writes down what the tests notice: `make mutants`.

The copy stands in build/mutants, with objects of its own; what a mutant needs compiled anew is one rule or one source
for most. A mutant that survives is a hole in the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import of_bindings  # noqa: E402
import of_engines  # noqa: E402
import of_python  # noqa: E402
import of_rules  # noqa: E402
from mutant import Mutant  # noqa: E402
from projects import ROOT, renew_sources  # noqa: E402

MUTANTS = (*of_rules.MUTANTS, *of_python.MUTANTS, *of_bindings.MUTANTS, *of_engines.MUTANTS)
RESULT = HERE / "result.json"
COPY = ROOT / "build/mutants"
# In one instruction set: the tests hold the others to its bits.
ENVIRONMENT = {**os.environ, "FUSEDOPT_CUDA": "0", "FUSEDOPT_ISAS": "generic"}
# The tests of a mutant may well wait forever.
LIMIT = 1800


def changed(mutant: Mutant, text: str) -> str:
    """The file's text with the mutation in it."""
    if text.count(mutant.before) != 1:
        raise SystemExit(f"{mutant.file} does not have once: {mutant.before}")
    return text.replace(mutant.before, mutant.after, 1)


def call(command: Sequence[str | Path], limit: float | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(COPY)}
    return subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True, timeout=limit)


PROGRAMS = {False: ["setup.py", "-q", "build_ext", "--inplace"], True: ["tests/cuda_emulator/build.py"]}
# Of these, by whether they are the emulated engine: what was last built with a mutant in it, or never.
stale = {False, True}


def build(mutant: Mutant | None) -> None:
    """What the tests of a mutant load, or those without one."""
    breaks = mutant is not None and mutant.file.startswith("csrc/")
    for emulated in sorted(stale | ({mutant.emulated} if mutant is not None and breaks else set())):
        done = call([sys.executable, *PROGRAMS[emulated]])
        if done.returncode != 0:
            raise SystemExit(f"{mutant or 'the copy'} does not build:\n{done.stderr[-3000:]}")
    stale.clear()
    if mutant is not None and breaks:
        stale.add(mutant.emulated)


def first_failure(tests: Sequence[str]) -> str | None:
    """The name of the first test that fails; None if all pass."""
    try:
        done = call([sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests], LIMIT)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT} s"
    if done.returncode == 0:
        return None
    failed = [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    if not failed:
        raise SystemExit(f"pytest {' '.join(tests)}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return failed[0]


def judge(mutant: Mutant) -> dict[str, str]:
    path = COPY / mutant.file
    before = path.read_text()
    start = time.monotonic()
    path.write_text(changed(mutant, before))
    try:
        build(mutant)
        killer = first_failure(mutant.tests.split())
    finally:
        path.write_text(before)
    told: dict[str, str] = {"file": mutant.file, "why": mutant.why, "before": mutant.before}
    told |= {"result": "survived" if killer is None else "killed", "by": killer or ""}
    print(f"{told['result']:8} {time.monotonic() - start:5.0f} s  {mutant.file}: {mutant.why}; {killer}", flush=True)
    return told


def write(judged: dict[tuple[str, str], dict[str, str]]) -> dict[str, int]:
    """The result so far, in the order of the list; how many were killed and how many survived."""
    found = [judged[mutant.file, mutant.before] for mutant in MUTANTS if (mutant.file, mutant.before) in judged]
    count = {result: sum(one["result"] == result for one in found) for result in ("killed", "survived")}
    told = {"date": date.today().isoformat(), **count, "left": len(MUTANTS) - len(found), "mutants": found}
    RESULT.write_text(json.dumps(told, indent=1) + "\n")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="", help="only mutants whose file or reason has this in it")
    parser.add_argument("--left", action="store_true", help="only those that the last result lacks")
    asked = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if asked.part in mutant.file or asked.part in mutant.why]
    renew_sources(COPY)
    build(None)
    # What was found of others stays: a part is for the mutants that were added.
    kept = json.loads(RESULT.read_text())["mutants"] if (asked.part or asked.left) and RESULT.exists() else []
    judged = {(one["file"], one["before"]): one for one in kept}
    for mutant in chosen:
        if asked.left and (mutant.file, mutant.before) in judged:
            continue
        judged[mutant.file, mutant.before] = judge(mutant)
        write(judged)
    # Whatever has noticed a mutant has to pass without one.
    build(None)
    killers = sorted({one["by"] for one in judged.values() if "::" in one["by"]})
    failing = first_failure(killers)
    if failing is not None:
        raise SystemExit(f"{failing} fails without any mutant")
    count = write(judged)
    print(f"{count['killed']} of {len(MUTANTS)} mutants killed; {RESULT.relative_to(ROOT)}")
    sys.exit(1 if count["killed"] < len(MUTANTS) else 0)


if __name__ == "__main__":
    main()
