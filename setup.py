"""Builds fusedopt._C; everything else is in pyproject.toml."""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import BuildExtension, CppExtension

# The package cannot be imported before it is built; this file of it can.
_spec = importlib.util.spec_from_file_location("toolchain", Path(__file__).parent / "fusedopt" / "_toolchain.py")
assert _spec is not None
assert _spec.loader is not None
toolchain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toolchain)


def time_of(path: str | Path) -> float:
    """When a file was last changed; a missing one counts as changed."""
    return os.path.getmtime(path) if os.path.exists(path) else float("inf")


def compile_cuda(cuda: toolchain.Cuda, source: Path, folder: Path) -> str:
    """Returns the object file, made anew if a source or the architectures have changed."""
    target, record, included = (folder / f"{source.name}.{kind}" for kind in ("o", "command", "d"))
    flags, names = cuda.codes(cuda.architectures())
    defines = [f'-DFUSEDOPT_CUDA_ARCHITECTURES="{names}"', "-MD", "-MF", str(included)]
    command = cuda.command(source, target, [*flags, *defines])
    if (
        not all(path.exists() for path in (target, record, included))
        or record.read_text() != shlex.join(command)
        or any(time_of(path) > time_of(target) for path in included.read_text().split() if path.startswith("csrc"))
    ):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit("nvcc failed; FUSEDOPT_CUDA=0 builds without the CUDA engine") from error
        record.write_text(shlex.join(command))
    return str(target)


def add_cuda(cuda: toolchain.Cuda, extension: Extension, folder: Path) -> None:
    with ThreadPoolExecutor() as pool:
        sources = sorted(Path("csrc/cuda").glob("*.cu"))
        extension.extra_objects = list(pool.map(lambda source: compile_cuda(cuda, source, folder), sources))
    extension.extra_link_args += cuda.link_flags()


class Build(BuildExtension):
    """BuildExtension that compiles the CUDA engine where it can and says in one line what it builds."""

    def build_extensions(self) -> None:
        cuda = toolchain.Cuda()
        cpu = "generic, avx2, avx512" if platform.machine() in ("x86_64", "AMD64") else "generic"
        built = ", ".join(cuda.architectures()) if cuda.nvcc else f"no, {cuda.missing}"
        # The build front ends swallow stdout; this line is for people.
        print(f"fusedopt builds CPU: {cpu}; CUDA: {built}", file=sys.stderr)
        for extension in self.extensions:
            if cuda.nvcc:
                add_cuda(cuda, extension, Path(self.build_temp).absolute())
            else:
                extension.sources.append("csrc/cuda/absent.cpp")
        super().build_extensions()


class BuildPy(build_py):
    """build_py that ships the sources that a user's own rule is compiled with."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            shutil.copytree("csrc", Path(self.build_lib) / "fusedopt" / "csrc", dirs_exist_ok=True)


os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))

setup(
    ext_modules=[
        CppExtension(
            "fusedopt._C",
            ["csrc/bindings.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))],
            # -fopenmp compiles the pragmas; it is left out of the link on purpose, so that the symbols resolve to the
            # OpenMP runtime that torch has loaded. Two thread pools in one process fight for the cores.
            extra_compile_args=["-fopenmp", "-fvisibility=hidden", "-Wall", *toolchain.NUMERICS],
            depends=[str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cu")],
        )
    ],
    cmdclass={"build_ext": Build, "build_py": BuildPy},
)
