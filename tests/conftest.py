"""Shared fixtures: every test starts from the same random state. The whole suite also runs on the emulated CUDA engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "cuda_emulator"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-emulator",
        choices=["device", "host"],
        help="step CPU tensors with the emulated CUDA engine; counters, learning rates and GradScaler's tensors lie in "
        "device memory or on the host",
    )


def pytest_configure(config: pytest.Config) -> None:
    numbers = config.getoption("--cuda-emulator")
    if numbers:
        from build import build

        # Before anything imports fusedopt.
        engine, control = build()
        sys.modules["fusedopt._C"] = engine
        control.numbers_on_device(numbers == "device")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
