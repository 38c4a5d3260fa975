"""Imported before the package by processes that are to step on the emulated device."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "cuda_emulator"))

from build import build

engine, control = build()
sys.modules["fusedopt._C"] = engine
control.numbers_on_device(True)
