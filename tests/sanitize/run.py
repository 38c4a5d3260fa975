"""Both engines and their rules under the sanitizers, without torch or a GPU.

AddressSanitizer and UndefinedBehaviorSanitizer watch the CPU engine and the CUDA engine on the emulated device;
ThreadSanitizer watches the threads of the latter's blocks.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cuda_emulator"))
from build import FLAGS, emulator_commands, load_toolchain  # noqa: E402

FOLDER = ROOT / "build" / "sanitize"
COMMON = [*FLAGS, "-g", "-Wextra", "-fno-omit-frame-pointer"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREAD = ["-fsanitize=thread"]
toolchain = load_toolchain()


def program(name: str, isas: Sequence[str], watched: Sequence[str]) -> Path:
    """A program of tests/sanitize, compiled and linked with what it tests."""
    flags = [*COMMON, *watched]
    tree = toolchain.Tree(ROOT)
    on_cuda = name != "engine_test"
    main = toolchain.cpp_command(Path("tests/sanitize") / f"{name}.cpp", flags)
    emulated = emulator_commands(toolchain, flags) if on_cuda else []
    objects = tree.make([main, *emulated, *tree.cpu_commands(isas, cuda=on_cuda, flags=flags)])
    target = FOLDER / watched[0].removeprefix("-fsanitize=").partition(",")[0] / name
    target.parent.mkdir(parents=True, exist_ok=True)
    link = [*toolchain.compiler(), "-fopenmp", "-pthread", *watched, *map(str, objects), "-o", str(target)]
    subprocess.run(link, check=True)
    return target


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)


def expect_none(done: subprocess.CompletedProcess[str]) -> None:
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise SystemExit(1)


def main() -> None:
    # libgomp keeps its thread pool until exit by design.
    expect_none(run([program("engine_test", toolchain.isas(), ADDRESS)], ASAN_OPTIONS="detect_leaks=0"))
    expect_none(run([program("cuda_engine_test", ["generic"], ADDRESS)]))
    expect_none(run([program("draws_test", ["generic"], ADDRESS)]))
    watched = program("cuda_engine_test", ["generic"], THREAD)
    done = run([watched], TSAN_OPTIONS="halt_on_error=1")
    # Where the system spreads a process over its address space further than ThreadSanitizer can follow.
    if done.returncode != 0 and "unexpected memory mapping" in done.stderr:
        done = run(["setarch", platform.machine(), "-R", watched], TSAN_OPTIONS="halt_on_error=1")
    expect_none(done)


if __name__ == "__main__":
    main()
