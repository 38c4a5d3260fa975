"""Builds fusedopt's bindings with the emulated CUDA engine: a test-only module that steps CPU tensors as CUDA's."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "cuda_emulator"

# setup.py's numerics, less of its optimization.
FLAGS = ["-O2", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp", "-fvisibility=hidden"]
DEFINES = ["-DFUSEDOPT_EMULATOR", "-DFUSEDOPT_GENERIC_ONLY", f"-I{HERE}", "-Wno-unknown-pragmas"]


def build() -> tuple[ModuleType, ModuleType]:
    """The engine module, which can stand in for fusedopt._C, and the emulator's controls."""
    if "emulated._C" not in sys.modules:
        BUILD.mkdir(parents=True, exist_ok=True)
        cpu = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
        cpp_extension.load(
            "fusedopt_emulated",
            [str(path) for path in (ROOT / "csrc" / "bindings.cpp", *cpu, *sorted(HERE.glob("*.cpp")))],
            extra_cflags=[*FLAGS, *DEFINES],
            build_directory=str(BUILD),
            is_python_module=False,
        )
        for name in ("_C", "_emulator"):
            loader = ExtensionFileLoader(f"emulated.{name}", str(BUILD / "fusedopt_emulated.so"))
            spec = importlib.util.spec_from_loader(loader.name, loader)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
            sys.modules[loader.name] = module
    return sys.modules["emulated._C"], sys.modules["emulated._emulator"]
