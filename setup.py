"""Builds fusedopt._C; everything else is in pyproject.toml."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

# IEEE arithmetic with every fma written out (-ffp-contract=off) makes results equal on every instruction set; the other
# two flags only drop errno and floating-point exceptions, without which g++ vectorises neither roots nor selections.
NUMERICS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# nvcc's division and square root are IEEE's unless asked otherwise.
CUDA_NUMERICS = ["-O3", "--fmad=false"]
# Ampere, Hopper, and the two Blackwells.
ARCHITECTURES = ["8.0", "9.0", "10.0", "12.0"]


class Cuda:
    """The CUDA engine: torch-free, so nvcc compiles it for any torch, with or without a GPU."""

    def __init__(self) -> None:
        self.nvcc = self._find()

    def _find(self) -> str | None:
        if os.environ.get("FUSEDOPT_CUDA") == "0":
            self.missing = "FUSEDOPT_CUDA=0"
            return None
        self.missing = "nvcc not found"
        homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
        places = [f"{home}/bin" for home in homes if home]
        return shutil.which("nvcc", path=os.pathsep.join([*places[:-1], os.environ.get("PATH", ""), places[-1]]))

    def architectures(self) -> list[str]:
        """As TORCH_CUDA_ARCH_LIST has them, else all of ours that the toolkit knows: "9.0", "12.0+PTX"."""
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
        for name in asked:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
                raise SystemExit(f"TORCH_CUDA_ARCH_LIST has {name!r}; write architectures as 9.0 or 12.0+PTX")
        if asked:
            return asked
        known = subprocess.check_output([str(self.nvcc), "--list-gpu-code"], text=True).split()
        ours = [name for name in ARCHITECTURES if f"sm_{name.replace('.', '')}" in known]
        return [*ours[:-1], ours[-1] + "+PTX"]

    def libraries(self) -> list[str]:
        """The toolkit's library folders, from nvcc itself: the nvcc on the PATH may be a script."""
        out = subprocess.run([str(self.nvcc), "--dryrun", "x.o"], capture_output=True, text=True, check=True).stderr
        found = re.search(r"LIBRARIES=(.*)", out)
        return [flag[2:] for flag in shlex.split(found.group(1)) if flag.startswith("-L")] if found else []

    def compile(self, source: Path, folder: Path) -> str:
        """Returns the object file, made anew if a source or the architectures have changed."""
        target = folder / f"{source.name}.o"
        codes, names = [], []
        for name in self.architectures():
            number = name.removesuffix("+PTX").replace(".", "")
            kinds = [f"sm_{number}", *([f"compute_{number}"] if name.endswith("+PTX") else [])]
            codes.append(f"-gencode=arch=compute_{number},code=[{','.join(kinds)}]")
            names += kinds
        command = [
            *[str(self.nvcc), "-std=c++17", *CUDA_NUMERICS, "--expt-relaxed-constexpr", "--threads", "0", *codes],
            *["-Xcompiler", "-fPIC,-fvisibility=hidden", f'-DFUSEDOPT_CUDA_ARCHITECTURES="{" ".join(names)}"'],
            *["-c", str(source), "-o", str(target)],
        ]
        record = folder / f"{source.name}.command"
        inputs = [path for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cu")]
        if (
            not target.exists()
            or not record.exists()
            or record.read_text() != shlex.join(command)
            or any(path.stat().st_mtime > target.stat().st_mtime for path in inputs)
        ):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as error:
                raise SystemExit("nvcc failed; FUSEDOPT_CUDA=0 builds without the CUDA engine") from error
            record.write_text(shlex.join(command))
        return str(target)

    def add_to(self, extension: Extension, folder: Path) -> None:
        with ThreadPoolExecutor() as pool:
            sources = sorted(Path("csrc/cuda").glob("*.cu"))
            extension.extra_objects = list(pool.map(lambda source: self.compile(source, folder), sources))
        # A runtime of our own, hidden: torch may have none, or one of another version.
        extension.library_dirs += self.libraries()
        extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
        extension.extra_link_args += ["-Wl,--exclude-libs,libcudart_static.a"]


class Build(BuildExtension):
    """BuildExtension that compiles the CUDA engine where it can and says in one line what it builds."""

    def build_extensions(self) -> None:
        cuda = Cuda()
        cpu = "generic, avx2, avx512" if platform.machine() in ("x86_64", "AMD64") else "generic"
        built = ", ".join(cuda.architectures()) if cuda.nvcc else f"no, {cuda.missing}"
        # The build front ends swallow stdout; this line is for people.
        print(f"fusedopt builds CPU: {cpu}; CUDA: {built}", file=sys.stderr)
        for extension in self.extensions:
            if cuda.nvcc:
                cuda.add_to(extension, Path(self.build_temp).absolute())
            else:
                extension.sources.append("csrc/cuda/absent.cpp")
        super().build_extensions()


os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))

setup(
    ext_modules=[
        CppExtension(
            "fusedopt._C",
            ["csrc/bindings.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))],
            # -fopenmp compiles the pragmas; it is left out of the link on purpose, so that the symbols resolve to the
            # OpenMP runtime that torch has loaded. Two thread pools in one process fight for the cores.
            extra_compile_args=["-fopenmp", "-fvisibility=hidden", "-Wall", *NUMERICS],
            depends=[str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cu")],
        )
    ],
    cmdclass={"build_ext": Build},
)
