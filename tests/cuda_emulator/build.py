"""Builds fusedopt's bindings with the emulated CUDA engine: a test-only module that steps CPU tensors as CUDA's.

What is not the CUDA engine in it is of the objects that the package was built from, but for csrc/host/device.cpp.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODULE = ROOT / "build" / "cuda_emulator" / "fusedopt_emulated.so"
# Of what runs in tests alone; -O3 takes longer to compile than it saves.
FLAGS = ["-O1", f"-I{HERE.relative_to(ROOT)}", "-Wno-unknown-pragmas"]


def load_toolchain() -> Any:
    """The package's, which cannot be imported before this."""
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "fusedopt" / "_toolchain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def emulator_commands(toolchain: Any, flags: Sequence[str] = FLAGS) -> list[list[str]]:
    """How the CUDA engine and the rules' kernels are compiled for the emulator: free of torch and of Python."""
    threes = toolchain.in_threes(toolchain.Tree(ROOT).rules())
    # What sets apart the objects of one source; two sources are for Python.
    kinds = {"control.cpp": [], "device.cpp": [], "cuda_rule.cpp": [toolchain.kernel_flags(three) for three in threes]}
    commands = []
    for path in sorted(HERE.glob("*.cpp")):
        for kind in kinds.get(path.name, [[]]):
            commands.append(toolchain.cpp_command(path.relative_to(ROOT), [*kind, *flags]))
    return commands


def compile_module() -> Path:
    """The shared object, of which only what has changed is made anew."""
    toolchain = load_toolchain()
    tree = toolchain.Tree(ROOT)
    control, device = (HERE.relative_to(ROOT) / name for name in ("control.cpp", "device.cpp"))
    commands = [command for command in tree.host_commands() if not command[-1].endswith("host/device.cpp")]
    commands += [*tree.torch_commands([device]), toolchain.torch_cpp_command(control, FLAGS)]
    objects = tree.make([*commands, *tree.cpu_commands(["generic"], cuda=True), *emulator_commands(toolchain)])
    if not MODULE.exists() or max(path.stat().st_mtime for path in objects) > MODULE.stat().st_mtime:
        MODULE.parent.mkdir(parents=True, exist_ok=True)
        part = MODULE.with_suffix(f".{os.getpid()}")
        link = [toolchain.compiler(), "-shared", *map(str, objects), *toolchain.torch_link_flags(), "-o", str(part)]
        subprocess.run(link, check=True)
        part.replace(MODULE)
    return MODULE


def build() -> tuple[ModuleType, ModuleType]:
    """The engine module, which can stand in for fusedopt._C, and the emulator's controls."""
    if "emulated._C" not in sys.modules:
        path = compile_module()
        for name in ("_C", "_emulator"):
            loader = ExtensionFileLoader(f"emulated.{name}", str(path))
            spec = importlib.util.spec_from_loader(loader.name, loader)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
            sys.modules[loader.name] = module
    return sys.modules["emulated._C"], sys.modules["emulated._emulator"]


if __name__ == "__main__":
    compile_module()
