"""Compilers and their flags, for setup.py and for rules that users compile; needs nothing but the standard library.

One long file, because setup.py loads it by its path, before there is a package to import from.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

# IEEE arithmetic with every fma written out (-ffp-contract=off) makes results equal on every instruction set; the next
# two flags only drop errno and floating-point exceptions, without which g++ vectorises neither roots nor selections.
# The last lets it take conditions out of longer loops, which stay scalar otherwise: some rules in bfloat16 were 20
# times slower.
NUMERICS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "--param=max-unswitch-insns=400"]
# nvcc's division and square root are IEEE's unless asked otherwise.
CUDA_NUMERICS = ["-O3", "--fmad=false"]
# Ampere, Hopper, and the two Blackwells.
ARCHITECTURES = ["8.0", "9.0", "10.0", "12.0"]
# From here on devices have accesses of 32 bytes, in a PTX of this architecture or a newer one.
_WIDE = 100
# The first toolkit whose launches carry more than 4 KiB of parameters, which the kernels take.
OLDEST_CUDA = (12, 1)
# Of the CPU engine, narrowest first; csrc/cpu/isa/target.h says what they are.
ISAS = ["generic", "avx2", "avx512"]
# What a compiler says of a machine that has them.
_AVX2 = {"__AVX2__", "__FMA__"}
_HAS = {"generic": set(), "avx2": _AVX2, "avx512": _AVX2 | {f"__AVX512{part}__" for part in ("F", "BW", "DQ", "VL")}}
# These are compiled once for each rule.
_CPU_RULE, _CUDA_RULE = Path("csrc/cpu/isa/rule.cpp"), Path("csrc/cuda/rule.cu")
# And these once for all, and for all that have sums.
_CUDA_COMMON, _CUDA_SUMS = Path("csrc/cuda/common.cu"), Path("csrc/cuda/sums.cu")
_CUDA_ENGINE = Path("csrc/cuda/engine.cu")
# A room has all that belongs to a feature. Its files say by their names how they are compiled, as folders say it of
# others: for the bindings, the CPU engine, each instruction set, the CUDA engine.
_SOURCES = {
    "host": ("csrc/host/*.cpp", "csrc/*/host*.cpp"),
    "cpu": ("csrc/cpu/*.cpp", "csrc/*/cpu*.cpp"),
    "isa": ("csrc/cpu/isa/*.cpp", "csrc/*/isa*.cpp"),
    "cuda": ("csrc/cuda/*.cu", "csrc/*/cuda*.cu"),
}
# What takes longest to compile, before the rest of what includes torch: begun last, it would be waited for alone.
_LONGEST = [
    *("torch.h", "cuda/common.cu", "adafactor/cuda.cu", "rule.cu", "cuda/sums.cu", "clipping/cuda.cu", "lbfgs/cuda.cu"),
    *("cuda_common.cpp", "cuda_rule.cpp"),
]
# What all sources that see torch include first. Reading it takes longer than compiling one of them.
TORCH_HEADER = Path("csrc/host/torch.h")
_DEVICE, _BATCHES = Path("csrc/host/device.cpp"), 4
# All that knows neither torch nor Python, in one shared object. Bindings lie beside it, a file for each torch.
ENGINES = "libfusedopt_engines.so"
# What the bindings need of torch, which import has loaded.
_TORCH_LIBRARIES = ("c10", "torch_cpu", "torch", "torch_python")


class SettingError(ValueError):
    """A sentence on an environment variable that asks for what cannot be."""


def _version(number: str) -> int:
    return int(number.rstrip("af"))


def compiler() -> list[str]:
    """The C++ compiler, in words: CXX may have a launcher before it, such as ccache, or flags behind."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def has_compiler() -> bool:
    """Whether there is one that runs."""
    try:
        return bool(_version_of(*compiler()))
    except (OSError, subprocess.CalledProcessError):
        return False


def isas() -> list[str]:
    """The instruction sets to build for: all, or what FUSEDOPT_ISAS asks for (docs/environment.md)."""
    # Clang has no `#pragma GCC target`.
    has_all = platform.machine() in ("x86_64", "AMD64") and "clang" not in _version_of(*compiler())
    ours = ISAS if has_all else ISAS[:1]
    asked = os.environ.get("FUSEDOPT_ISAS", "").replace(",", " ").split()
    for name in asked:
        if name not in (*ours, "supported", "native"):
            raise SettingError(f"FUSEDOPT_ISAS has {name!r}; write supported, native, or some of {', '.join(ours)}")
    here = [name for name in ours if _HAS[name] <= _macros()] if {"supported", "native"} & {*asked} else []
    of_words = {"supported": here, "native": here[-1:]}
    wanted = {isa for name in asked or ours for isa in of_words.get(name, [name])}
    # Of what is built for this machine alone, generic would be a third that never runs.
    return [name for name in ours if name in wanted or (name == "generic" and "native" not in asked)]


@cache
def _macros() -> set[str]:
    """What the compiler defines for this machine."""
    query = [*compiler(), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    return {*subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()}


def cpp_command(source: Path, flags: Iterable[str] = ()) -> list[str]:
    """How a C++ source is compiled, but for where to."""
    # -fopenmp compiles the pragmas; it is left out of the link on purpose, so that the symbols resolve to the OpenMP
    # runtime that torch has loaded. Two thread pools in one process fight for the cores.
    ours = ["-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", *NUMERICS]
    return [*compiler(), *ours, *flags, "-c", str(source)]


class Torch:
    """A torch to compile for: its package's folder, of which headers and what says how it was compiled are enough."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        said = re.search(r"__version__ = '(.+)'", (folder / "version.py").read_text())
        assert said is not None, f"{folder / 'version.py'} names no version"
        self.version = said[1]
        # Which of libstdc++'s two strings it was compiled with. Torches that say nothing have the new one.
        config = folder / "share/cmake/Torch/TorchConfig.cmake"
        told = re.search(r"_GLIBCXX_USE_CXX11_ABI=(\d)", config.read_text()) if config.exists() else None
        self.cxx11_abi = told[1] if told else "1"

    def flags(self) -> list[str]:
        """What a compiler is told, beside the headers' places that it is not of the interpreter's or another torch."""
        headers = self.folder / "include"
        places = [headers, headers / "torch/csrc/api/include", sysconfig.get_path("include")]
        # Another version's headers may be older than an object; commands are what tells objects apart.
        named = [f'-DFUSEDOPT_TORCH="{self.version}"', f"-D_GLIBCXX_USE_CXX11_ABI={self.cxx11_abi}"]
        # As torch itself is compiled: without it, torch's headers and pybind11's check themselves at every reference.
        return [*named, "-DNDEBUG", *[f"-isystem{place}" for place in places]]


def installed_torch() -> Torch | None:
    """This environment's, which is not imported for that."""
    spec = importlib.util.find_spec("torch")
    return Torch(Path(spec.origin).parent) if spec and spec.origin else None


def binding(version: str) -> str:
    """The module that is compiled for a version of torch and all that differ from it in the patch."""
    return "_C_torch{}_{}".format(*version.split("."))


def torch_cpp_command(source: Path, flags: Iterable[str] = (), torch: Torch | None = None) -> list[str]:
    """How a source that includes torch is compiled, for the torch that is here or another."""
    torch = torch or installed_torch()
    assert torch is not None, "there is no torch to compile for"
    # The last -std is the one that counts. Newer headers of torch want this one, older ones take it. g++ 12 has
    # something to say of its own std::string then.
    return cpp_command(source, [*torch.flags(), *flags, "-std=c++20", "-Wno-restrict"])


def link_engines(objects: Iterable[Path], target: Path, flags: Iterable[str] = ()) -> None:
    """Make the shared object of the engines, less the names that nobody outside looks up."""
    _link([*map(str, objects), *flags, f"-Wl,-soname,{ENGINES}"], target)


def link_bindings(objects: Iterable[Path], target: Path, flags: Iterable[str] = ()) -> None:
    """Make a module that needs torch's libraries.

    Of these their names are enough, for import has loaded them: what stands in for them here is empty. So bindings are
    made for a torch of which there are no more than headers.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in _TORCH_LIBRARIES:
            _link(["-nostdlib", f"-Wl,-soname,lib{name}.so", "-xc", os.devnull], Path(folder, f"lib{name}.so"))
        needed = [f"-l{name}" for name in _TORCH_LIBRARIES]
        named = ["-Wl,--no-as-needed", *flags, f"-L{folder}", *needed, "-Wl,--as-needed"]
        _link([*map(str, objects), *named], target)


def _link(what: Iterable[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Never half a file, nor another one under a process that has loaded it.
    part = target.with_suffix(f".{os.getpid()}")
    subprocess.run([*compiler(), "-shared", "-s", *what, "-o", str(part)], check=True)
    os.replace(part, target)


def beside(engines: Path, rpath: str = "$ORIGIN") -> list[str]:
    """For link_bindings: the engines, which the loader looks for in a folder."""
    return [str(engines), f"-Wl,-rpath,{rpath}"]


def torch_header_command(torch: Torch | None = None) -> list[str]:
    """How the header that all sources of the bindings include first is compiled."""
    return torch_cpp_command(TORCH_HEADER, ["-x", "c++-header"], torch)


@cache
def _version_of(*program: str) -> str:
    return subprocess.run([*program, "--version"], capture_output=True, text=True, check=True).stdout


class Rule(NamedTuple):
    """A struct that is a rule, and the header that has it as #include finds it."""

    struct: str
    header: str
    sums: bool = False  # makes sums over whole tensors, or others of its header do


def structs_in(text: str, base: str = "RuleDefaults") -> list[str]:
    """The names of the rules in a header's text, or of what is derived from whatever else matches `base`."""
    pattern = rf"\bstruct\s+(\w+)\s*(?:final\s*)?:\s*(?:public\s+)?{base}\b"
    return re.findall(pattern, _without_comments(text))


def have_sums(text: str) -> bool:
    """Whether rules in a header's text make sums over whole tensors."""
    return re.search(r"\bsums\s*[={](?!\s*0\b)", _without_comments(text)) is not None


def _without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)


def isa_command(source: Path, isa: str, flags: Iterable[str] = ()) -> list[str]:
    """How a source in csrc/cpu/isa is compiled for an instruction set."""
    # A condition that is taken out of a loop makes two of it, and a step up to 6 % faster. Processors without AVX2,
    # which are all that need the baseline, select instead: a third of their code is gone.
    of_old = isa == "generic" and platform.machine() == "x86_64"
    return cpp_command(source, [f"-DFUSEDOPT_ISA_{isa.upper()}", *["-fno-unswitch-loops"] * of_old, *flags])


def rule_commands(rule: Rule, isas: Iterable[str], flags: Iterable[str] = ()) -> list[list[str]]:
    """How a rule is compiled for the CPU."""
    named = ["-Icsrc/rules", f"-DFUSEDOPT_RULE={rule.struct}", f'-DFUSEDOPT_RULE_FILE="{rule.header}"']
    return [isa_command(_CPU_RULE, isa, [*named, *flags]) for isa in isas]


def kernel_flags(rules: Sequence[Rule]) -> list[str]:
    """What csrc/cuda/rule.cu, common.cu and sums.cu are told of rules."""
    headers = dict.fromkeys(rule.header for rule in rules)
    included = [word for header in headers for word in ("-include", header)]
    named = ["-DFUSEDOPT_NAMESPACE=fusedopt_cuda", f"-DFUSEDOPT_RULES(do)={_each(rule.struct for rule in rules)}"]
    return ["-Icsrc/rules", *named, *included]


def in_threes(rules: Sequence[Rule]) -> list[Sequence[Rule]]:
    """Rules whose kernels are compiled together; csrc/cuda/rule.cu says why."""
    return [rules[at : at + 3] for at in range(0, len(rules), 3)]


def registry_command(rules: Sequence[Rule], isas: Iterable[str], cuda: bool, flags: Iterable[str] = ()) -> list[str]:
    """How what finds these rules is compiled; `cuda` says that their kernels are linked as well."""
    on_cpu = _each(f"{isa}, {rule.struct}" for isa in isas for rule in rules)
    on_cuda = _each(rule.struct for rule in rules if cuda)
    lists = [f"-DFUSEDOPT_CPU_RULES(do)={on_cpu}", f"-DFUSEDOPT_CUDA_RULES(do)={on_cuda}"]
    return cpp_command(Path("csrc/registry.cpp"), [*lists, *flags])


def _each(names: Iterable[str]) -> str:
    """The body of a macro that does something with each."""
    return " ".join(f"do({name})" for name in names)


class Tree:
    """A source tree and its object files: one for each command, made anew when a source or a header has changed."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "build" / "objects"

    def sources(self, *patterns: str) -> list[Path]:
        """Paths from the root, from where commands are run."""
        return sorted(path.relative_to(self.root) for pattern in patterns for path in self.root.glob(pattern))

    def torch_commands(
        self, batches: Sequence[Sequence[Path]], torch: Torch | None = None, header: Path | None = None
    ) -> list[list[str]]:
        """How sources that include torch are compiled, an object a batch, from a header that is compiled once.

        `header` stands beside it, where that is not among the objects.
        """
        among = self._object(torch_header_command(torch)).with_suffix(".h")
        compiled = header or among.relative_to(self.root)
        # Flags that differ between it and them: what else is included, and what language it is in.
        included = [
            [word for path in (compiled, *others) for word in ("-include", str(path))] for *others, _ in batches
        ]
        return [torch_cpp_command(last, words, torch) for words, (*_, last) in zip(included, batches, strict=True)]

    def host_commands(self, torch: Torch | None = None, header: Path | None = None) -> list[list[str]]:
        """How what knows torch is compiled.

        An object costs six seconds for what pybind11 and torch put into every one, so there are few; device.cpp has one
        of its own, in whose place the emulator of the tests has another.
        """
        others = [source for source in self.sources(*_SOURCES["host"]) if source != _DEVICE]
        batches = [[_DEVICE], *filter(None, (others[n::_BATCHES] for n in range(_BATCHES)))]
        return self.torch_commands(batches, torch, header)

    def rules(self) -> list[Rule]:
        """Those of the package: every one that a header in csrc/rules has."""
        headers = self.sources("csrc/rules/*.h")
        texts = {header.name: (self.root / header).read_text() for header in headers}
        return [Rule(s, name, have_sums(text)) for name, text in texts.items() for s in structs_in(text)]

    def cpu_commands(self, isas: Sequence[str], cuda: bool, flags: Sequence[str] = ()) -> list[list[str]]:
        """How the CPU engine and its rules are compiled for some instruction sets. They are free of torch.

        `cuda` says that the rules' kernels are linked with them.
        """
        built = f"-DFUSEDOPT_ISAS(do)={_each(isas)}"
        commands = [registry_command(self.rules(), isas, cuda, flags)]
        for source in self.sources(*_SOURCES["cpu"]):
            commands.append(cpp_command(source, [*[built] * (source.name == "engine.cpp"), *flags]))
        for source in self.sources(*_SOURCES["isa"]):
            if source != _CPU_RULE:
                commands += [isa_command(source, isa, flags) for isa in isas]
        for rule in self.rules():
            commands += rule_commands(rule, isas, flags)
        return commands

    def cuda_commands(self, cuda: Cuda) -> list[list[str]]:
        """How the CUDA engine and the rules' kernels, or what says that there are none, are compiled."""
        if not cuda.nvcc:
            return [cpp_command(Path("csrc/cuda/absent.cpp"))]
        architectures = cuda.architectures()
        others = {*self.sources(*_SOURCES["cuda"])} - {_CUDA_RULE, _CUDA_COMMON, _CUDA_SUMS, _CUDA_ENGINE}
        commands = [cuda.command(source, cuda.codes(architectures)[0]) for source in sorted(others)]
        # What is asked whether there are kernels for a device is made for those that all objects have kernels for.
        flags, names = cuda.codes(architectures, wide=True)
        commands.append(cuda.command(_CUDA_ENGINE, [*flags, f'-DFUSEDOPT_CUDA_ARCHITECTURES="{names}"']))
        return commands + cuda.rule_commands(self.rules(), architectures)

    def engine_commands(self, isas: Sequence[str], cuda: Cuda) -> list[list[str]]:
        """How the package's engines are compiled."""
        return [*self.cpu_commands(isas, cuda=bool(cuda.nvcc)), *self.cuda_commands(cuda)]

    def make(self, commands: Iterable[Sequence[str]]) -> list[Path]:
        """The objects of commands that end with a source; ninja compiles what is missing or has changed."""
        commands = list(commands)
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = self.folder / "build.ninja"
        with open(self.folder / "lock", "w") as lock:
            # Of several processes that want the same, one compiles.
            fcntl.flock(lock, fcntl.LOCK_EX)
            recipe.write_text(self._recipe(sorted(commands, key=_rank)))
            # stdout is for what asked for the build.
            ninja = [_ninja(), "-f", str(recipe), "-j", str(_jobs()), "--quiet"]
            failed = subprocess.run(ninja, cwd=self.root, stdout=2).returncode != 0
        if failed:
            hint = "; FUSEDOPT_CUDA=0 builds without the CUDA engine" if _compiles_cuda(commands) else ""
            raise SystemExit(f"a source does not compile, as said above{hint}")
        return [self._object(command) for command in commands]

    def _recipe(self, commands: Iterable[Sequence[str]]) -> str:
        lines = [f"builddir = {_escaped(self.folder)}", "rule compile", "  command = $how -MMD -MF $out.d -o $out"]
        lines += ["  depfile = $out.d", "  description = $in"]
        headers: dict[str, list[str]] = {}
        for command in commands:
            after = ""
            included = [at for at, word in enumerate(command) if word == "-include"]
            if included and Path(command[included[0] + 1]).name.startswith(f"{TORCH_HEADER.stem}-"):
                compiled = _escaped(self.root / (command[included[0] + 1] + ".gch"))
                alike = [word for at, word in enumerate(command[:-2]) if not {at, at - 1} & {*included}]
                headers[compiled] = [*alike, "-x", "c++-header", "-c", str(TORCH_HEADER)]
                after = f" | {compiled}"
            lines.append(f"build {_escaped(self._object(command))}: compile {_escaped(command[-1])}{after}")
            lines.append(f"  how = {shlex.join(command).replace('$', '$$')}")
        for compiled, command in headers.items():
            lines.append(f"build {compiled}: compile {_escaped(command[-1])}")
            lines.append(f"  how = {shlex.join(command).replace('$', '$$')}")
        return "\n".join(lines) + "\n"

    def _object(self, command: Sequence[str]) -> Path:
        digest = hashlib.sha256("\0".join([_version_of(*_program(command)), *command]).encode())
        (told,) = [flag for flag in command if re.match(r"-DFUSEDOPT_RULES?\b[^_]", flag)] or [""]
        rules = re.findall(r"\w+", told.partition("=")[2].replace("do(", " "))
        source = Path(command[-1])
        if len(rules) > 3:
            rules = [f"{len(rules)}_rules"]
        names = [source.stem, *(rules or [source.parent.name]), digest.hexdigest()[:12]]
        return self.folder / f"{'-'.join(names)}.o"


def _program(command: Sequence[str]) -> Sequence[str]:
    """What of a command is the compiler."""
    own = compiler()
    return own if [*command[: len(own)]] == own else command[:1]


def run_all(commands: Sequence[Sequence[str]], folder: Path, root: Path) -> list[Path]:
    """The objects of commands, made in a folder where there may be no ninja; as many run at a time as in a build.

    Raises:
        RuntimeError: one fails, with what it says.
    """
    objects = [folder / f"{number}.o" for number in range(len(commands))]
    with ThreadPoolExecutor(_jobs()) as pool:
        list(pool.map(lambda each: run([*each[0], "-o", str(each[1])], root), zip(commands, objects, strict=True)))
    return objects


def run(command: Sequence[str], root: Path) -> None:
    """Run a compiler in a folder; raise RuntimeError with what it says if it fails."""
    # In the C locale compilers quote with plain quotes.
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, cwd=root)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)


def cache_folder() -> Path:
    """Where what is compiled on a user's machine is kept."""
    given = os.environ.get("FUSEDOPT_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not given and not base.is_absolute():  # as its specification says of others
        base = Path.home() / ".cache"
    # Compilers run elsewhere.
    return Path(given).absolute() if given else base / "fusedopt"


def make_in_cache(folder: Path) -> None:
    """Make a folder there; RuntimeError where none can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RuntimeError(
            f"what is compiled cannot be kept in {folder}: {error.strerror}; set FUSEDOPT_CACHE to a folder that can "
            "be written to"
        ) from None


def _rank(command: Sequence[str]) -> int:
    knows_torch = any(word.startswith("-DFUSEDOPT_TORCH=") for word in command)
    others = len(_LONGEST) + (not knows_torch)
    return next((rank for rank, name in enumerate(_LONGEST) if command[-1].endswith(f"/{name}")), others)


def _compiles_cuda(commands: Iterable[Sequence[str]]) -> bool:
    return any(command[-1].endswith(".cu") for command in commands)


def _escaped(path: str | Path) -> str:
    """As ninja wants paths."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def _ninja() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "ninja"
    found = str(beside) if beside.exists() else shutil.which("ninja")
    if found is None:
        raise SystemExit("ninja, which runs the compilers, is not found; run: python -m pip install ninja")
    return found


def _jobs() -> int:
    asked = os.environ.get("MAX_JOBS")
    if asked and not (asked.isdecimal() and int(asked)):
        raise SettingError(f"MAX_JOBS is {asked!r}; give how many compilers may run at a time, at least 1")
    return int(asked or os.cpu_count() or 1)


class Cuda:
    """The CUDA engine: torch-free, so nvcc compiles it for any torch, with or without a GPU."""

    def __init__(self) -> None:
        self.nvcc = self._find()
        if self.nvcc and self._release() < OLDEST_CUDA:
            found, needed = (".".join(map(str, version)) for version in (self._release(), OLDEST_CUDA))
            self.missing = f"{self.nvcc} is of CUDA {found}, and the kernels need CUDA {needed} or newer"
            self.nvcc = None

    def _find(self) -> str | None:
        wanted = os.environ.get("FUSEDOPT_CUDA") or "1"
        if wanted not in ("0", "1", "gpu"):
            raise SettingError(
                f"FUSEDOPT_CUDA is {wanted!r}; use 0 for no CUDA engine, 1 for one where nvcc is found, gpu for one "
                "where there is a GPU, too"
            )
        if wanted == "0" or (wanted == "gpu" and not os.path.exists("/dev/nvidiactl")):
            self.missing = f"FUSEDOPT_CUDA={wanted}" + " and there is none" * (wanted == "gpu")
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
                raise SettingError(f"TORCH_CUDA_ARCH_LIST has {name!r}; write architectures as 9.0 or 12.0+PTX")
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

    def codes(self, architectures: Sequence[str], wide: bool = False) -> tuple[list[str], str]:
        """nvcc's flags for them, and what they contain: "sm_90 compute_90".

        All are made from the PTX of the oldest, whose instructions are all that most kernels use, so that half of nvcc
        runs once and not once for each. `wide` kernels have accesses of 32 bytes, too, so newer architectures are made
        from the oldest of theirs. Architectures with a letter have a PTX of their own.
        """
        numbers = sorted((name.removesuffix("+PTX").replace(".", "") for name in architectures), key=_version)
        wants_ptx = any(name.endswith("+PTX") for name in architectures)
        plain = [number for number in numbers if number.isdigit()]
        older = [number for number in plain if not wide or int(number) < _WIDE]
        newer = [number for number in plain if number not in older]
        flags, names = [], []
        for alike in filter(None, [older, newer, *([number] for number in numbers if not number.isdigit())]):
            # A newer PTX is all that a device newer than both can want.
            ptx = wants_ptx and not (alike is older and newer)
            kinds = [f"sm_{number}" for number in alike] + [f"compute_{alike[0]}"] * ptx
            flags.append(f"-gencode=arch=compute_{alike[0]},code=[{','.join(kinds)}]")
            names += kinds
        return flags, " ".join(names)

    def command(self, source: Path, flags: list[str]) -> list[str]:
        """How nvcc compiles a source, but for where to."""
        # Machine code compresses to a tenth, which by default is done to some images and not to others. The better way
        # needs a driver that what CUDA 13 makes needs anyway.
        compress = ["--compress-mode=size"] if self._release() >= (13, 0) else ["-Xfatbin", "-compress-all"]
        return [
            *[str(self.nvcc), "-std=c++17", *CUDA_NUMERICS, "--expt-relaxed-constexpr", *compress, "--threads", "0"],
            *[*flags, "-Xcompiler", "-fPIC,-fvisibility=hidden", "-c", str(source)],
        ]

    def rule_commands(
        self, rules: Sequence[Rule], architectures: Sequence[str], flags: Iterable[str] = ()
    ) -> list[list[str]]:
        """How the kernels of rules are compiled."""
        alike, wide = ([*self.codes(architectures, wide)[0], *flags] for wide in (False, True))
        common = [self.command(_CUDA_COMMON, [*alike, *kernel_flags(rules)])]
        if with_sums := [rule for rule in rules if rule.sums]:
            common.append(self.command(_CUDA_SUMS, [*alike, *kernel_flags(with_sums)]))
        return [*common, *(self.command(_CUDA_RULE, [*wide, *kernel_flags(three)]) for three in in_threes(rules))]

    def _release(self) -> tuple[int, int]:
        found = re.search(r"release (\d+)\.(\d+)", _version_of(str(self.nvcc)))
        return (int(found.group(1)), int(found.group(2))) if found else (0, 0)

    def link_flags(self) -> list[str]:
        """For g++: a runtime of our own, hidden, since torch may have none, or one of another version."""
        libraries = [f"-L{path}" for path in self.libraries()] + ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        return [*libraries, "-Wl,--exclude-libs,libcudart_static.a"]
