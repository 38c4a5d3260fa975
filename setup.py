"""Builds fusedopt._C; everything else is in pyproject.toml."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
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


def require_torch() -> None:
    """Stop where there is no torch to compile against, before anything is fetched or compiled."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(
            "fusedopt is compiled against the torch that it will run with, and there is none here. pip builds in an "
            "empty environment of its own unless it is told not to. In the environment that has torch, run: python -m "
            "pip install setuptools wheel ninja numpy && python -m pip install --no-build-isolation ."
        )


class Build(build_ext):
    """build_ext that compiles in one pool, keeps objects for later builds and says in one line what it builds."""

    def build_extension(self, extension: Extension) -> None:
        require_torch()
        cuda = toolchain.Cuda()
        if os.environ.get("FUSEDOPT_CUDA") == "1" and not cuda.nvcc:
            raise SystemExit(
                f"FUSEDOPT_CUDA=1 asks for the CUDA engine, and {cuda.missing}; set CUDA_HOME or the PATH to another"
            )
        isas = toolchain.isas()
        built = ", ".join(cuda.architectures()) if cuda.nvcc else f"no, {cuda.missing}"
        # The build front ends swallow stdout; this line is for people.
        print(f"fusedopt builds CPU: {', '.join(isas)}; CUDA: {built}", file=sys.stderr)
        commands = [*TREE.host_commands(), *TREE.cpu_commands(isas, cuda=bool(cuda.nvcc)), *TREE.cuda_commands(cuda)]
        self.force = True  # setuptools does not compare objects with what was linked of others
        extension.extra_objects = [str(path) for path in TREE.make(commands)]
        extension.extra_link_args = [*toolchain.torch_link_flags(), *(cuda.link_flags() if cuda.nvcc else [])]
        super().build_extension(extension)


class DistInfo(dist_info):
    """dist_info, which comes first when pip installs, that does not let it fetch what cannot be built with."""

    def run(self) -> None:
        require_torch()
        super().run()


class BuildPy(build_py):
    """build_py that ships the sources that a user's own rule is compiled with."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            shutil.copytree(CSRC, Path(self.build_lib) / "fusedopt" / "csrc", dirs_exist_ok=True)


setup(
    ext_modules=[
        Extension("fusedopt._C", [], language="c++", depends=[str(path) for path in CSRC.rglob("*") if path.is_file()])
    ],
    cmdclass={"build_ext": Build, "build_py": BuildPy, "dist_info": DistInfo},
)
