"""The emulator that runs CUDA kernels on the CPU is tested itself: kernels run on it as on a device, and bugs planted
in kernels are found by the build that is there to find them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tiers import thinned

FOLDER = Path(__file__).parent / "cuda_emulator"
KERNELS = ["selftest.cu", "selftest_host.cu", "selftest_streams.cu"]
SOURCES = [f"{name}.cpp" for name in ("block", "emulator", "fibers", "host", "shared", "streams", "threads")]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-pthread", "-Wa,--no-warn"]
BUILDS = {
    "address": ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-g", "-fsanitize=thread"],
    "plain": [],
    "ucontext": ["-DCUDA_EMULATOR_UCONTEXT", "-O0"],
    # The emulator is told of all that kernels read and write.
    "watched": [],
}

CASES = [
    *("indices", "reduction", "launchers", "votes", "shuffles", "parts", "atomics", "parameters"),
    *("limits", "devices", "errors", "failures", "misaligned", "deadlocks"),
    *("captures", "forbidden", "forks", "environment", "held_by_graphs"),
]
RUNS = [
    ("plain", "fibers"),
    ("plain", "threads"),
    ("watched", "fibers"),
    ("ucontext", "fibers"),
    ("address", "fibers"),
    ("thread", "threads"),
]
# Compiling one takes longer than running it, and only a change of the emulator itself can break another alone.
one_build = thinned("builds differ in who watches", keep=lambda build: build == "plain", together=0)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a case in a build, which the first call compiles."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    folder = tmp_path_factory.mktemp("cuda_emulator")
    environment = os.environ | {"TSAN_OPTIONS": "atexit_sleep_ms=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

    @cache
    def compiled(name: str) -> Path | None:
        """The executable; None where the toolchain lacks the sanitizer."""
        empty = folder / f"{name}.empty.cpp"
        empty.write_text("int main() {}\n")
        probe = [COMPILER, *BUILDS[name], str(empty), "-o", str(empty.with_suffix(""))]
        if subprocess.run(probe, capture_output=True).returncode != 0:
            return None
        executable = folder / name
        compile_ = [COMPILER, *FLAGS, *BUILDS[name], f"-I{FOLDER}"]
        kernels, sources = ([str(FOLDER / source) for source in some] for some in (KERNELS, SOURCES))
        if name == "watched":
            objects = folder / "objects"
            objects.mkdir()
            command = [*compile_, "-fsanitize=thread", "-c", "-x", "c++", *kernels]
            done = subprocess.run(command, cwd=objects, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            kernels = ["-x", "none", *map(str, objects.iterdir())]
            sources.append(str(FOLDER / "access.cpp"))
        command = [*compile_, "-x", "c++", *sources, *kernels, "-o", str(executable)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return executable

    def call(build: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        executable = compiled(build)
        if executable is None:
            pytest.skip(f"{COMPILER} cannot build with {BUILDS[build]}")

        def attempt(*prefix: str) -> subprocess.CompletedProcess[str]:
            command = [*prefix, str(executable), *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

        done = attempt()
        # Where the system spreads a process over its address space further than ThreadSanitizer can follow.
        if "unexpected memory mapping" in done.stderr:
            done = attempt("setarch", platform.machine(), "-R")
        return done

    return call


def seeds(backend: str) -> list[str]:
    # Order is the system's where the threads are its own.
    return ["0", "1", "2", "3"] if backend == "fibers" else ["0"]


@one_build
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("build", "backend"), RUNS)
def test_kernels_run_as_on_a_device(run: Run, build: str, backend: str, case: str) -> None:
    if build == "thread" and case == "forks":
        pytest.skip("ThreadSanitizer allows no threads after a fork")
    done = run(build, case, backend, *seeds(backend))
    assert done.returncode == 0, done.stdout + done.stderr


@one_build
@pytest.mark.parametrize(
    ("build", "backend", "bug", "twin", "found"),
    [
        ("plain", "fibers", "reversal_without_barrier", "reversal", "the other thread's number"),
        ("plain", "fibers", "shift_without_barrier", "shift", "the other thread's number"),
        ("thread", "threads", "reversal_without_barrier", "reversal", "data race"),
        ("thread", "threads", "shift_without_barrier", "shift", "data race"),
        ("thread", "threads", "block_order_by_warps", "block_order", "data race"),
        ("thread", "threads", "warp_order_by_wrong_mask", "warp_order", "data race"),
        ("address", "fibers", "fill_too_far", "fill", "heap-buffer-overflow"),
        ("plain", "fibers", "vector_load_misaligned", "vector_load", "not a multiple of 16"),
        ("plain", "threads", "vector_load_misaligned", "vector_load", "not a multiple of 16"),
        ("plain", "fibers", "wide_load_misaligned", "wide_load", "not a multiple of 32"),
        ("address", "fibers", "plain_vector_load_misaligned", "plain_vector_load", "misaligned address"),
        *(
            ("watched", "fibers", f"{twin}_unordered", twin, "and nothing orders the two")
            for twin in ("across_streams", "overwritten", "by_way_of_the_host")
        ),
        ("watched", "fibers", "blocks_write_one_place", "blocks_write", "writes in another block"),
        ("watched", "fibers", "blocks_read_of_another", "blocks_read", "in another block"),
        ("plain", "fibers", "read_by_the_host_too_early", "read_by_the_host", "the host sees what the device has"),
        ("watched", "fibers", "given_back_too_early", "given_back", "the next owner of freed memory"),
        ("watched", "fibers", "replayed_without_its_memory", "replayed", "had been freed before it was put there"),
        ("plain", "fibers", "shared_memory_unset", "shared_memory", "each block begins anew"),
        ("plain", "threads", "shared_memory_unset", "shared_memory", "each block begins anew"),
        ("address", "fibers", "shared_memory_unset", "shared_memory", "each block begins anew"),
    ],
)
def test_planted_bug_is_found(run: Run, build: str, backend: str, bug: str, twin: str, found: str) -> None:
    right = run(build, twin, backend, *seeds(backend))
    assert right.returncode == 0, right.stdout + right.stderr
    wrong = run(build, bug, backend, *seeds(backend))
    assert wrong.returncode != 0
    assert found in wrong.stdout + wrong.stderr


def test_some_bugs_show_only_in_shuffled_order(run: Run) -> None:
    assert run("plain", "shift_without_barrier", "fibers", "0").returncode == 0
    assert run("plain", "shift_without_barrier", "fibers", "1").returncode != 0
