"""Builds the engines and the bindings; everything else is in pyproject.toml."""

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info

# The package cannot be imported before it is built; this file of it can.
_spec = importlib.util.spec_from_file_location("toolchain", Path(__file__).parent / "fusedopt" / "_toolchain.py")
assert _spec is not None
assert _spec.loader is not None
toolchain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toolchain)

CSRC = Path("csrc")
TREE = toolchain.Tree(Path(__file__).parent.absolute())
ENGINES = f"fusedopt.{Path(toolchain.ENGINES).stem}"


def torches() -> dict:
    """The torches to make bindings for, by the modules' names: those whose folders are listed, else the one here."""
    listed = os.environ.get("FUSEDOPT_TORCHES", "").split(os.pathsep)
    for folder in filter(None, listed):
        if not Path(folder, "version.py").is_file():
            raise SystemExit(f"FUSEDOPT_TORCHES has {folder!r}, which has no version.py; give folders that torch is in")
    found = [toolchain.Torch(Path(folder)) for folder in listed if folder] or [toolchain.installed_torch()]
    return {f"fusedopt.{toolchain.binding(torch.version)}": torch for torch in found if torch}


def require_torch() -> None:
    """Stop where there is no torch to compile for, before anything is fetched or compiled."""
    if not torches():
        raise SystemExit(
            "fusedopt is compiled against the torch that it will run with, and there is none here. pip builds in an "
            "empty environment of its own unless it is told not to. In the environment that has torch, run: python -m "
            "pip install setuptools wheel ninja numpy && python -m pip install --no-build-isolation ."
        )


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Stop where there is no compiler, or the environment asks for what cannot be, without a traceback."""
    if not toolchain.has_compiler():
        name = shlex.join(toolchain.compiler())
        raise SystemExit(f"there is no C++ compiler {name!r} that runs; install g++ 10 or newer, or set CXX to another")
    try:
        yield
    except toolchain.SettingError as error:
        raise SystemExit(str(error)) from None


def commands(isas: list, cuda: object) -> dict:
    """How the objects of each module are compiled."""
    named = {ENGINES: TREE.engine_commands(isas, cuda)}
    return named | {name: TREE.host_commands(torch) for name, torch in torches().items()}


class Build(build_ext):
    """build_ext that compiles in one pool, keeps objects for later builds and says in one line what it builds."""

    @told_in_a_sentence()
    def run(self) -> None:
        require_torch()
        self.force = True  # setuptools does not compare objects with what was linked of others
        cuda = toolchain.Cuda()
        if os.environ.get("FUSEDOPT_CUDA") == "1" and not cuda.nvcc:
            raise SystemExit(
                f"FUSEDOPT_CUDA=1 asks for the CUDA engine, and {cuda.missing}; set CUDA_HOME or the PATH to another"
            )
        isas = toolchain.isas()
        built = ", ".join(cuda.architectures()) if cuda.nvcc else f"no, {cuda.missing}"
        names = ", ".join(torch.version for torch in torches().values())
        # The build front ends swallow stdout; this line is for people.
        print(f"fusedopt builds CPU: {', '.join(isas)}; CUDA: {built}; for torch {names}", file=sys.stderr)
        of_modules = commands(isas, cuda)
        objects = iter(TREE.make([command for each in of_modules.values() for command in each]))
        self.objects = {name: [next(objects) for _ in each] for name, each in of_modules.items()}
        self.cuda_flags = cuda.link_flags() if cuda.nvcc else []
        super().run()

    def build_extension(self, extension: Extension) -> None:
        objects, target = self.objects[extension.name], Path(self.get_ext_fullpath(extension.name))
        if extension.name == ENGINES:
            toolchain.link_engines(objects, target, self.cuda_flags)
        else:
            toolchain.link_bindings(objects, target, toolchain.beside(target.with_name(toolchain.ENGINES)))

    def get_ext_filename(self, name: str) -> str:
        *package, module = name.split(".")
        return (
            super().get_ext_filename(name)
            if module != ENGINES.split(".")[1]
            else os.path.join(*package, toolchain.ENGINES)
        )


class Ahead(Command):
    """What build_ext will link, as far as it compiles already: all but the bindings where there is no torch yet."""

    user_options: ClassVar[list] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    @told_in_a_sentence()
    def run(self) -> None:
        of_modules = commands(toolchain.isas(), toolchain.Cuda())
        TREE.make([command for each in of_modules.values() for command in each])


class DistInfo(dist_info):
    """dist_info, which comes first when pip installs, that does not let it fetch what cannot be built with."""

    def run(self) -> None:
        require_torch()
        super().run()


class BuildPy(build_py):
    """build_py that ships the sources that a user's own rule is compiled with, and bindings for another torch."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            shutil.copytree(CSRC, Path(self.build_lib) / "fusedopt" / "csrc", dirs_exist_ok=True)


setup(
    # The engines first: the bindings are linked with them.
    ext_modules=[Extension(name, [], language="c++") for name in (ENGINES, *torches())],
    cmdclass={"ahead": Ahead, "build_ext": Build, "build_py": BuildPy, "dist_info": DistInfo},
)
