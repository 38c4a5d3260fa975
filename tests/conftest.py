"""Every test starts from the same random state; --cuda-emulator runs the suite on the emulated CUDA engine, --all
what tests/tiers.py leaves out."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "cuda_emulator"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-emulator",
        choices=["device", "host", "both"],
        help="step CPU tensors with the emulated CUDA engine; counters, learning rates and GradScaler's tensors lie in "
        "device memory or on the host, or in one after the other for tests that are about them",
    )

    parser.addoption("--all", action="store_true", help="run also the combinations that tests/tiers.py leaves out")


def pytest_configure(config: pytest.Config) -> None:
    # Threads of several workers on one core would spend their time waiting for each other.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    # Rules that tests compile need not wait for nvcc, but in the test that is about it.
    os.environ["FUSEDOPT_CUDA"] = "0"
    import tiers

    tiers.everything = config.getoption("--all")
    numbers = config.getoption("--cuda-emulator")
    if numbers:
        from build import build

        # Before anything imports fusedopt.
        engine, control = build()
        sys.modules["fusedopt._C"] = engine
        control.numbers_on_device(numbers != "host")


# What does not step anything, chooses its engine itself, or is about files, arguments and programs.
_OWN_ENGINE = tuple(
    f"test_{name}"
    for name in (
        "aarch64",
        "arctangent",
        "bench",
        "claims",
        "clipping_distributed",  # its processes step on the CPU's
        "compare_optimizers",
        "compiled",
        "configs",
        "constructor_errors",
        "convert",
        "cuda",
        "docs",
        "engines",
        "examples",
        "extension",
        "foreign",
        "generic",
        "gpu",
        "install",
        "mutants",
        "names",
        "origin",
        "parts",
        "registry",
        "sass",
        "sharded",  # as above; on the emulated device they are in test_cuda_sharded.py
        "signatures",
        "site",
        "tiers",
        "toolchain",
        "vectorised",
    )
)


# Without --all these run on the CPU alone: whose numbers are the CPU's to the bit test_cuda_adafactor.py has shown, and
# hooks are called in Python around any step.
_ALIKE = ("test_adafactor.py", "test_hooks.py")


# What is about numbers beside tensors: counters, learning rates, GradScaler's. All else is the same wherever they lie,
# and runs with them on the device.
_NUMBERS = tuple(
    f"test_{name}"
    for name in (
        "amp",
        "clipping",
        "grad_scaler",
        "max_grad_norm",
        "plan",
        "precision_state",
        "state",
        "step",
        "training",
    )
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    numbers = config.getoption("--cuda-emulator")
    name = collection_path.name
    if numbers is None or not name.startswith("test_"):
        return None
    alike = name in _ALIKE and not config.getoption("--all")
    elsewhere = name.startswith(_OWN_ENGINE) or (numbers == "host" and not name.startswith(_NUMBERS))
    return True if alike or elsewhere else None


def _in_part(config: pytest.Config) -> bool:
    """Whether some of what is asked for is left out. Who asks for one test by its name wants it."""
    return not config.getoption("--all") and not any("::" in argument for argument in config.args)


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Iterator[None]:
    """What tests/tiers.py leaves out is not made an item of: that would take most of the time of a collection."""
    yield
    from tiers import few, select

    config = metafunc.config
    calls: Any = metafunc._calls
    in_part = _in_part(config)
    if calls and in_part:
        module, mark = metafunc.definition.path.stem, metafunc.definition.get_closest_marker("thinned")
        kept = select(calls, module, mark, emulated=config.getoption("--cuda-emulator") is not None)
        if not kept:
            # Of none at all pytest would make an item without parameters.
            calls[0].marks.append(pytest.mark.left_out.mark)
        calls[:] = kept or calls[:1]
    if config.getoption("--cuda-emulator") == "both" and metafunc.definition.path.name.startswith(_NUMBERS):
        metafunc.parametrize("_numbers", ["device", "host"], indirect=True, scope="module")
        if in_part:
            # Where numbers lie, and all that a test goes through with them on the device, are two things.
            calls = metafunc._calls
            host = [call for call in calls if call.params["_numbers"] == "host"]
            left_out = {id(call) for call in host} - {id(call) for call in few(host)}
            calls[:] = [call for call in calls if id(call) not in left_out]


# Of these one test takes as long as hundreds of others. What xdist is given last, one worker does alone.
_FIRST = ("test_engines", "test_sass", "test_sharded", "test_compiled", "test_walk", "test_benchmarks", "test_property")


def _rank(path: Path, count: int) -> tuple[bool, int, Path]:
    """In what order files go to workers: long tests, then many, then few."""
    return path.stem not in _FIRST, -count, path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--cuda-emulator"):
        for item in items:
            if "large" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="billions of elements take the emulator too long"))
    waiting = {"left_out", "slow"} if _in_part(config) else {"left_out"}
    left_out = [item for item in items if waiting & item.keywords.keys()]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not waiting & item.keywords.keys()]
    if "PYTEST_XDIST_WORKER" in os.environ:
        counts = Counter(item.path for item in items)
        items.sort(key=lambda item: _rank(item.path, counts[item.path]))


def pytest_collection_finish() -> None:
    # Tens of thousands of tests: a collection of garbage that looks at them takes half a second.
    gc.collect()
    gc.freeze()


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set, in use until the test ends; skipped, with the reason, where it cannot be."""
    from fusedopt import _C

    name: str = request.param
    if name not in _C.supported_isas():
        pytest.skip(f"{name}: not {'supported by this processor' if name in _C.built_isas() else 'in this build'}")
    before, _ = _C.chosen_isa()
    _C.use_isa(name)
    yield name
    _C.use_isa(before)


@pytest.fixture(autouse=True, scope="module")
def _numbers(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is about numbers beside tensors has them on the device, then on the host: --cuda-emulator=both."""
    if not hasattr(request, "param"):
        yield
        return
    from build import build

    _, control = build()
    control.numbers_on_device(request.param == "device")
    yield
    control.numbers_on_device(True)


# Of the CPU's numbers alone where there are no others: for an accelerator that is not there torch.manual_seed() formats
# the stack of calls, which takes longer than many a test.
_seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    _seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
