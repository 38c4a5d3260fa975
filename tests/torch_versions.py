"""The core of the suite on another torch: `make test TORCH=2.15.0`.

In an environment and a copy of the sources of its own under build/, so that neither .venv nor the checkout's extension
knows of it. What came out goes into torch_versions.json, and from there into the table of docs/compatibility.md.
torch's wheels for CUDA bring some gigabytes; with PIP_EXTRA_INDEX_URL set to an index of CPU wheels, and
TORCH=2.15.0+cpu, they do not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from projects import ROOT, renew_sources

RESULTS = ROOT / "tests/torch_versions.json"
PAGE = ROOT / "docs/compatibility.md"
BEGIN, END = "<!-- torch versions -->\n", "<!-- /torch versions -->\n"
# What depends on torch: its classes, functions, files and constructors, the sentences about its defects, its shards and
# what trains on them, its compiler.
CORE = (
    *("parity", "step", "state", "class", "constructor_errors", "signatures", "fallback", "standalone", "functional"),
    "functional_errors",
    *("lbfgs", "lbfgs_inputs", "muon", "adafactor", "adafactor_state", "sparse_adam", "unread", "defects"),
    *("sharded", "torch_compile"),
)
TOOLS = ("setuptools", "wheel", "ninja", "numpy")
TESTS = ("pytest", "pytest-xdist", "hypothesis")
ASK = "import sys, torch; print(torch.__version__, torch.version.cuda or '', '.'.join(map(str, sys.version_info[:2])))"


def constraints_without_torch(folder: Path) -> Path:
    """Those of the project, but for the version that is asked for, and setuptools', which 2.11.0 wants older."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    path = folder / "constraints.txt"
    path.write_text("\n".join(line for line in lines if not line.startswith(("torch==", "setuptools=="))) + "\n")
    return path


def installed(version: str, folder: Path) -> Path:
    """The Python of an environment that has this torch and what the core's tests need."""
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "venv/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    constraints = constraints_without_torch(folder)
    wanted = [f"torch=={version}", *TOOLS, *TESTS]
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, *wanted], check=True)
    return python


def run_core(python: Path, folder: Path) -> dict[str, int]:
    source = folder / "source"
    renew_sources(source)
    # The bits of all instruction sets are equal; that is no matter of torch's. With any but the one that all others
    # are compared with there would be two to build.
    environment = {"FUSEDOPT_CUDA": "0", "FUSEDOPT_ISAS": "generic", **os.environ, "PYTHONPATH": str(source)}
    build = [python.absolute(), "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=source, env=environment, check=True)
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    files = [f"tests/test_{name}.py" for name in CORE]
    spread = ["-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]
    tests = [python.absolute(), "-m", "pytest", *spread, f"--junitxml={report.absolute()}", *files]
    subprocess.run(tests, cwd=source, env=environment)
    if not report.exists():
        raise SystemExit("pytest wrote no report; see above")
    suite = ElementTree.parse(report).getroot()
    suite = suite if suite.tag == "testsuite" else suite[0]
    count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return {"passed": count["tests"] - failed - count["skipped"], "skipped": count["skipped"], "failed": failed}


def order(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def table(results: dict[str, dict[str, str | int]]) -> str:
    rows = ["| torch | built for | Python | passed | skipped | failed | on |", "|---|---|---|---|---|---|---|"]
    for version in sorted(results, key=order):
        its = results[version]
        counts = " | ".join(f"{its[name]:,}" for name in ("passed", "skipped", "failed"))
        rows.append(f"| {version} | {its['built for']} | {its['python']} | {counts} | {its['date']} |")
    names = ", ".join(f"`test_{name}`" for name in CORE)
    return "\n".join([*rows, "", f"The core is {names}.", ""])


def with_table(page: str, text: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + text + END + rest.partition(END)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", nargs="?", help="of torch; without it only the table is written")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = 0
    if asked.version:
        folder = ROOT / "build" / f"torch-{asked.version}"
        python = installed(asked.version, folder)
        said = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=True).stdout.rstrip("\n")
        version, cuda, of_python = said.split(" ")
        counts = run_core(python, folder)
        failed = counts["failed"]
        built_for = f"CUDA {cuda}" if cuda else "CPU"
        results[version.partition("+")[0]] = {
            "built for": built_for,
            "python": of_python,
            **counts,
            "date": date.today().isoformat(),
        }
        ordered = {version: results[version] for version in sorted(results, key=order)}
        RESULTS.write_text(json.dumps(ordered, indent=2) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), table(results)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
