"""Builds fusedopt's bindings with the emulated CUDA engine: a test-only module that steps CPU tensors as CUDA's.

What is not the CUDA engine in it is of the objects that the package was built from, but for csrc/host/device.cpp.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDER = ROOT / "build" / "cuda_emulator"
# Of what runs in tests alone; -O3 takes longer to compile than it saves.
# The assembler has its own idea of what is in the sections of shared.cpp.
FLAGS = ["-O1", f"-I{HERE.relative_to(ROOT)}", "-Wno-unknown-pragmas", "-Wa,--no-warn"]
# ThreadSanitizer's instructions, of which access.cpp makes something else. Streams are about these, and, of the rules,
# about Adam and those that are compiled with it.
WATCHED = ["-fsanitize=thread"]
ABOUT_STREAMS = {"cuda_clipping.cpp", "cuda_common.cpp", "cuda_engine.cpp", "cuda_transport.cpp"}


def load_toolchain() -> Any:
    """The package's, which cannot be imported before this."""
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "fusedopt" / "_toolchain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def emulator_commands(toolchain: Any, flags: Sequence[str] = FLAGS, watched: bool = False) -> list[list[str]]:
    """How the CUDA engine and the rules' kernels are compiled for the emulator: free of torch and of Python.

    If `watched`, access.cpp is told of every access to memory by what is about streams.
    """
    rules = toolchain.Tree(ROOT).rules()
    threes = toolchain.in_threes(rules)
    # What sets apart the objects of one source; two sources are for Python.
    kinds = {"control.cpp": [], "device.cpp": [], "cuda_rule.cpp": [toolchain.kernel_flags(three) for three in threes]}
    kinds["cuda_common.cpp"] = [toolchain.kernel_flags(rules)]
    kinds["cuda_sums.cpp"] = [toolchain.kernel_flags([rule for rule in rules if rule.sums])]
    kinds["access.cpp"] = [[]] if watched else []
    commands = []
    for path in sorted(HERE.glob("*.cpp")):
        for kind in kinds.get(path.name, [[]]):
            of_adam = path.name == "cuda_rule.cpp" and "do(Adam)" in " ".join(kind)
            seen = watched and (path.name in ABOUT_STREAMS or of_adam)
            commands.append(toolchain.cpp_command(path.relative_to(ROOT), [*kind, *flags, *(WATCHED if seen else [])]))
    return commands


def engine_commands(toolchain: Any, tree: Any, watched: bool = False) -> list[list[str]]:
    """How all of it is compiled that knows neither torch nor Python."""
    commands: list[list[str]] = tree.cpu_commands(["generic"], cuda=True)
    return commands + emulator_commands(toolchain, watched=watched)


def bindings_commands(toolchain: Any, tree: Any) -> list[list[str]]:
    """How the rest is compiled."""
    control, device = (HERE.relative_to(ROOT) / name for name in ("control.cpp", "device.cpp"))
    commands = [command for command in tree.host_commands() if not command[-1].endswith("host/device.cpp")]
    return [*commands, *tree.torch_commands([[device]]), toolchain.torch_cpp_command(control, FLAGS)]


def compile_module(watched: bool = False) -> Path:
    """The shared object, of which only what has changed is made anew."""
    toolchain = load_toolchain()
    tree = toolchain.Tree(ROOT)
    module = FOLDER / ("fusedopt_watched.so" if watched else "fusedopt_emulated.so")
    objects = tree.make([*bindings_commands(toolchain, tree), *engine_commands(toolchain, tree, watched)])
    if not module.exists() or max(path.stat().st_mtime for path in objects) > module.stat().st_mtime:
        toolchain.link_bindings(objects, module)
    return module


def build(watched: bool = False) -> tuple[ModuleType, ModuleType]:
    """The engine module, which can stand in for fusedopt._C, and the emulator's controls."""
    package = "watched" if watched else "emulated"
    if f"{package}._C" not in sys.modules:
        path = compile_module(watched)
        for name in ("_C", "_emulator"):
            loader = ExtensionFileLoader(f"{package}.{name}", str(path))
            spec = importlib.util.spec_from_loader(loader.name, loader)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
            sys.modules[loader.name] = module
    return sys.modules[f"{package}._C"], sys.modules[f"{package}._emulator"]


def compile_ahead() -> None:
    """The objects of both, the package's and the emulator's: all but the bindings' where there is no torch yet."""
    toolchain = load_toolchain()
    tree = toolchain.Tree(ROOT)
    commands = [*tree.engine_commands(toolchain.isas(), toolchain.Cuda()), *engine_commands(toolchain, tree)]
    if toolchain.installed_torch():
        commands += [*tree.host_commands(), *bindings_commands(toolchain, tree)]
    # One object may be in both.
    tree.make({tuple(command): command for command in commands}.values())


if __name__ == "__main__":
    # Beside pip, which fetches and unpacks on one core and then waits for the package's objects.
    if "--ahead" in sys.argv[1:]:
        compile_ahead()
    else:
        compile_module()
