"""Makes a wheel for several torches, installs it beside each, and compares steps with torch's own: `make prove-wheel`.

    python release/prove.py PYTHON [PYTHON ...]

Each is the Python of an environment that has a torch. The wheel is installed into an empty environment that sees that
torch and nothing of this folder, and steps there with what the wheel brings. What came out goes into wheels.json, and
from there into the table of docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import wheel

RESULTS = wheel.ROOT / "release/wheels.json"
PAGE = wheel.ROOT / "docs/compatibility.md"
BEGIN, END = "<!-- wheels -->\n", "<!-- /wheels -->\n"
ASK = "import json, os, site, sys, torch; print(json.dumps([torch.__version__, os.path.dirname(torch.__file__), "
ASK += "site.getsitepackages(), sys.version.split()[0]]))"
PROGRAM = """
import json
import torch, fusedopt
from fusedopt import _C
off = {}
for name in ("SGD", "AdamW", "RMSprop", "Adafactor"):
    ends = []
    for library in (fusedopt, torch.optim):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(size)) for size in ((70, 30), (5,), (4097,))]
        optimizer = getattr(library, name)(params, lr=0.01)
        for _ in range(5):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
        ends.append(torch.cat([param.detach().flatten() for param in params]))
    off[name] = (ends[0] - ends[1]).abs().max().item()
print(json.dumps({"at": _C.__file__, "isa": fusedopt.capabilities()["cpu"]["chosen"], "off": off}))
"""


def said(command: list[str | Path], folder: Path, **more: str) -> str:
    """The last line that a program prints."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FUSEDOPT_CACHE")} | more
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:3]))} ...:\n{done.stdout}{done.stderr}")
    return done.stdout.rstrip("\n").rpartition("\n")[2]


def proved(file: Path, version: str, python: str, packages: list[str]) -> dict[str, str | float]:
    """What a step does with the wheel in an environment of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said([python, "-m", "venv", folder / "venv"], folder)
        inside = folder / "venv/bin/python"
        # A wheel that needed more than torch and numpy, which are seen from here, would fail.
        seen = said([inside, "-c", "import site; print(site.getsitepackages()[0])"], folder)
        said([inside, "-m", "pip", "install", "-q", "--no-index", "--no-deps", file], folder)
        Path(seen, "others.pth").write_text("\n".join(packages))
        told = json.loads(said([inside, "-c", PROGRAM], folder, FUSEDOPT_CACHE=str(folder / "cache")))
        if not Path(told["at"]).is_relative_to(seen):
            raise SystemExit(f"torch {version}: the bindings are {told['at']}, none of the wheel's")
    print(f"torch {version}: {told}", flush=True)
    worst = max(told["off"].values())
    if worst > 1e-6:
        raise SystemExit(f"torch {version}: params are {worst} off torch's own")
    return {"largest difference": worst, "date": date.today().isoformat()}


def table(results: dict[str, dict[str, str | float]]) -> str:
    rows = ["| torch | Python | largest difference after 5 steps | on |", "|---|---|---|---|"]
    for name, its in results.items():
        version, python = name.split(", Python ")
        rows.append(f"| {version} | {python} | {its['largest difference']:.1e} | {its['date']} |")
    return "\n".join([*rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", type=Path, help="of environments that have a torch each")
    asked = parser.parse_args()
    found = [json.loads(said([python.absolute(), "-c", ASK], wheel.ROOT / "release")) for python in asked.pythons]
    file = wheel.repair(wheel.build([Path(folder) for _, folder, _, _ in found]), wheel.ROOT / "dist")
    print(wheel.sizes(file), flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for python, (version, _, packages, its) in zip(asked.pythons, found, strict=True):
        results[f"{version}, Python {its}"] = proved(file, version, str(python.absolute()), packages)
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(results) + END + rest.partition(END)[2])


if __name__ == "__main__":
    sys.exit(main())
