"""Optimizers from a user's own rule: a C++ header, compiled when it is first asked for."""

from __future__ import annotations

import hashlib
import inspect
import keyword
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch.optim.optimizer import ParamsT

from . import _C, _toolchain
from ._core.arguments import Options
from ._core.precision import KEPT_BESIDE, MasterWeights, Offload, Rounding, StateDtype
from ._core.standalone import Standalone

_HERE = Path(__file__).parent
_ENGINES = _HERE / _toolchain.ENGINES


def compile_rule(source: str | os.PathLike[str], *, name: str) -> type[CompiledRule]:
    """Return an optimizer class whose update is the rule in `source`, compiled for this machine.

    The rule is C++: a struct derived from `RuleDefaults`, plain scalar maths that names its hyper-parameters, states
    and scalars (docs/your_own_rule.md goes from a paper's formula to a class that trains; csrc/rules/rule.h is the
    contract). It is compiled for every CPU instruction set the package has and, where nvcc is and the package has its
    CUDA engine, for CUDA. The result is cached under `FUSEDOPT_CACHE`, or else in the user's cache folder, by the
    contents of the rule and of what it includes, the package's sources and the compilers, so compiling happens once.

    Args:
        source: the header's text, or the path of a file that holds it, which may include what lies beside it. Where
            there are several rules, that of the class's name is taken.
        name: the class's name, a Python identifier.

    Returns:
        A class whose constructor takes the params and, by their names in the rule, its hyper-parameters, with
        `hyper_defaults` as their defaults; `maximize`, `capturable`, `foreach`, `fused` and the options that Lion has
        are keyword-only. Groups, hooks, checkpoints and GradScaler work as in the other optimizers.

    Raises:
        ValueError: `name` is no identifier, the source holds no rule or several of other names, or the rule gives a
            state or a hyper-parameter a name that is taken; or an environment variable asks for what cannot be.
        RuntimeError: the rule does not compile, with the compiler's words about the rule's own lines; there is no
            compiler, or nowhere to keep the result.

    Example:
        >>> Signum = fusedopt.compile_rule('''
        ... struct Signum : RuleDefaults {
        ...   struct Hypers { double lr, momentum; };
        ...   static constexpr const char* hyper_names[] = {"lr", "momentum"};
        ...   static constexpr double hyper_defaults[] = {0.5, 0.9};
        ...   static constexpr const char* state_names[] = {"momentum_buffer"};
        ...   static constexpr int counters = 0;
        ...   template <class T> struct Scalars { T lr, weight; };
        ...   FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double*, bool) {
        ...     return {h.lr, 1 - h.momentum};
        ...   }
        ...   template <int, class T> FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
        ...     s[0] = lerp(s[0], g, c.weight);
        ...     p = fma(-c.lr, sign(s[0]), p);
        ...   }
        ... };
        ... ''', name="Signum")
        >>> param = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> param.grad = torch.tensor([4.0, -0.25])
        >>> Signum([param]).step()
        >>> param.tolist()
        [0.5, 2.5]
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"name is {name!r}; give a Python identifier, which becomes the name of the class")
    path = Path(source) if not isinstance(source, str) or _is_path(source) else None
    text = path.read_text() if path else cast(str, source)
    library, key = _Build(text, path and path.resolve(), _struct_in(text, name), name).library()
    facts = _C.load_rule(str(library))
    _refuse_names(facts)
    caller = sys._getframe(1).f_globals.get("__name__", __name__)
    return _make_class(name, key, facts, text, caller)


def _struct_in(text: str, name: str) -> str:
    """The struct that is compiled: of the class's name, whatever it derives from, or the only rule that there is."""
    structs = _toolchain.structs_in(text)
    if not structs:
        raise ValueError(
            "source holds no rule; write a struct derived from RuleDefaults, as csrc/rules/rule.h describes"
        )
    if name in _toolchain.structs_in(text, base=r"\w+"):
        return name
    if len(structs) > 1:
        raise ValueError(f"source holds several rules, {', '.join(structs)}; give the name of one, not {name!r}")
    return structs[0]


def _is_path(source: str) -> bool:
    return "\n" not in source and "{" not in source


def _included(text: str, folder: Path, places: Sequence[Path], seen: set[Path]) -> list[Path]:
    """The files that a source in `folder` includes, from there or `places`, and these in turn."""
    for name in re.findall(r'^\s*#\s*include\s*["<]([^">]+)[">]', text, re.MULTILINE):
        path = next((its for place in (folder, *places) if (its := place / name).is_file()), None)
        if path is not None and path not in seen:
            seen.add(path)
            _included(path.read_text(errors="replace"), path.parent, places, seen)
    return sorted(seen)


def _sources() -> Path:
    """The package's C++ sources: inside an installed package, beside a source tree's."""
    inside = _HERE / "csrc"
    return inside if inside.is_dir() else _HERE.parent / "csrc"


class _Build:
    """One rule on its way to a shared object."""

    def __init__(self, text: str, file: Path | None, struct: str, name: str) -> None:
        self.text, self.file, self.struct, self.name = text, file, struct, name
        self.label = str(file or f"{name}.h")
        self.csrc = _sources()
        self.compiler = _toolchain.compiler()
        self.isas = _C.built_isas()
        self.cuda = _toolchain.Cuda() if _C.cuda_built() else None
        self.architectures: list[str] = []
        if self.cuda is not None and self.cuda.nvcc:
            self.architectures = self._architectures(self.cuda)
        self.key = f"{name}-{self._digest()}"

    @staticmethod
    def _architectures(cuda: _toolchain.Cuda) -> list[str]:
        if os.environ.get("TORCH_CUDA_ARCH_LIST") or not torch.cuda.is_available():
            return cuda.architectures()
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return [f"{major}.{minor}" for major, minor in sorted(found)]

    def _digest(self) -> str:
        digest = hashlib.sha256()
        flags = _toolchain.cpp_command(Path())
        for part in (self.text, self.label, self.name, *self.isas, self._version(), *flags, *self.architectures):
            digest.update(part.encode() + b"\0")
        sources = sorted(p for p in self.csrc.rglob("*") if p.is_file())
        sources = [p for p in sources if p.parent.name != "host" and not p.match("host*.cpp")]
        variables = (os.environ.get(name, "") for name in ("CPATH", "CPLUS_INCLUDE_PATH"))
        told = [Path(place) for value in variables for place in value.split(os.pathsep) if place]
        rules = self.csrc / "rules"
        for path in (*sources, *_included(self.text, self.file.parent if self.file else rules, [rules, *told], set())):
            digest.update(path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]

    def _version(self) -> str:
        if not _toolchain.has_compiler():
            name = shlex.join(self.compiler)
            raise RuntimeError(f"a rule needs a C++17 compiler and {name!r} is not found; install g++ or set CXX")
        return subprocess.run([*self.compiler, "--version"], capture_output=True, text=True, check=True).stdout

    def library(self) -> tuple[Path, str]:
        """The shared object, compiled unless the cache has it, and the name the rule is registered by."""
        target = _toolchain.cache_folder() / self.key / "rule.so"
        if not target.exists():
            _toolchain.make_in_cache(target.parent)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                try:
                    built = self._compile(Path(folder))
                except RuntimeError as error:
                    raise RuntimeError(f"rule {self.name} does not compile:\n{self._complaint(str(error))}") from None
                # Another process may have been quicker; both made the same.
                os.replace(built, target)
        return target, self.key

    def _compile(self, folder: Path) -> Path:
        header = folder / f"{self.name}.h"
        wrapped = "FUSEDOPT_NAMESPACE" in self.text
        opening = "" if wrapped else "namespace FUSEDOPT_NAMESPACE {\n"
        closing = "" if wrapped else "\n}  // namespace FUSEDOPT_NAMESPACE\n"
        # A file is included where it lies, so that it can include what lies beside it.
        own = f'#include "{self.file}"' if self.file else f'#line 1 "{self.label}"\n{self.text}'
        header.write_text(f'#pragma once\n#include "rule.h"\n{opening}{own}{closing}')
        rule = _toolchain.Rule(self.struct, str(header), _toolchain.have_sums(self.text))
        flags = [f'-DFUSEDOPT_RULE_KEY="{self.key}"']
        commands = _toolchain.rule_commands(rule, self.isas, flags)
        # The first alone, since all of them would say the same of a rule that is wrong.
        _toolchain.run([*commands[0], "-fsyntax-only"], self.csrc.parent)
        commands += [_toolchain.cpp_command(Path("csrc", part)) for part in ("cpu/prefetch.cpp", "plugin.cpp")]
        # Tiles are the engines' business, and theirs to bring.
        link: Sequence[str] = _toolchain.beside(_ENGINES, str(_ENGINES.parent))
        kernels = self.cuda is not None and bool(self.architectures)
        if self.cuda is not None and kernels:
            commands[:0] = self.cuda.rule_commands([rule], self.architectures, flags)
            link = [*link, *self.cuda.link_flags()]
        commands.append(_toolchain.registry_command([rule], self.isas, cuda=kernels))
        built = folder / "rule.so"
        objects = _toolchain.run_all(commands, folder, self.csrc.parent)
        _toolchain.run([*self.compiler, "-shared", *map(str, objects), *link, "-o", str(built)], self.csrc.parent)
        return built

    def _complaint(self, output: str) -> str:
        """The errors in a compiler's output, each with the rule's line."""
        lines, found = self.text.splitlines(), []
        for message in output.splitlines():
            error = re.match(r"(.+?):(\d+):(?:\d+:)? (?:fatal )?error: (.*)", message)
            if error and error.group(1) == self.label and 0 < int(error.group(2)) <= len(lines):
                found.append(f"  {self.label}:{error.group(2)}: {error.group(3)}\n    {lines[int(error.group(2)) - 1]}")
            elif error:
                found.append(f"  {Path(error.group(1)).name}:{error.group(2)}: {error.group(3)}")
        return "\n".join(dict.fromkeys(found)) or output


class CompiledRule(Standalone):
    """An optimizer that `compile_rule` made; the rule's hyper-parameters, in its order, are the open arguments here."""

    # The rule's own text.
    source: ClassVar[str]
    _hypers: ClassVar[inspect.Signature]

    def __init__(
        self,
        params: ParamsT,
        *positional: Any,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        state_dtype: StateDtype = None,
        master_weights: MasterWeights | None = None,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        offload: Offload | None = None,
        **hypers: Any,
    ) -> None:
        given = self._hypers.bind(*positional, **hypers)
        given.apply_defaults()
        flags = {"maximize": maximize, "capturable": capturable}
        options = Options(max_grad_norm, ema_decay, state_dtype, master_weights, rounding, rounding_seed, offload)
        super().__init__(params, {**given.arguments, **flags}, foreach=foreach, fused=fused, options=options)


def _refuse_names(facts: Mapping[str, Any]) -> None:
    """Raise ValueError for a rule whose hyper-parameters or states have names by which something else is kept."""
    arguments = inspect.signature(CompiledRule.__init__).parameters.values()
    taken = {p.name for p in arguments} | {"param_names", "differentiable"}
    entries: dict[str, list[str]] = {}
    for hyper in facts["hypers"]:
        base, dot, at = hyper.partition(".")
        entries.setdefault(base, []).append(at if dot else "")
    for base, places in entries.items():
        if not base.isidentifier() or keyword.iskeyword(base):
            raise ValueError(f"hyper_names has {base!r}, which cannot name an argument; give a Python identifier")
        if base in taken:
            raise ValueError(f"hyper_names has {base!r}, which every optimizer has for something else; rename it")
        if places != [""] and places != [str(at) for at in range(len(places))]:
            found = [f"{base}.{at}" if at else base for at in places]
            raise ValueError(f"hyper_names has {found}; number the entries of a tuple from 0, in their order")
    states = [*facts["counters"], *facts["states"]]
    beside = {*KEPT_BESIDE, *(f"{state}_scale" for state in facts["states"])}
    for index, state in enumerate(states):
        if state in states[:index]:
            raise ValueError(f"{state!r} is twice among the rule's counter_names and state_names; rename one")
        if state in beside:
            raise ValueError(f"state_names has {state!r}, by which options keep a tensor beside a rule's; rename it")


def _make_class(name: str, key: str, facts: dict[str, Any], text: str, module: str) -> type[CompiledRule]:
    given = facts.get("defaults") or [math.nan] * len(facts["hypers"])
    hypers: dict[str, Any] = {}
    for hyper, value in zip(facts["hypers"], given, strict=True):
        base, dot, _ = hyper.partition(".")
        hypers[base] = (*hypers.get(base, ()), value) if dot else value
    required = [h for h, v in hypers.items() if any(map(math.isnan, v if isinstance(v, tuple) else (v,)))]
    kind = inspect.Parameter
    own = [
        *[kind(h, kind.POSITIONAL_OR_KEYWORD) for h in required],
        *[kind(h, kind.POSITIONAL_OR_KEYWORD, default=v) for h, v in hypers.items() if h not in required],
    ]
    first, *others = inspect.signature(CompiledRule.__init__).parameters.values()
    params, *flags = [p for p in others if p.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)]

    def __init__(self: CompiledRule, *args: Any, **kwargs: Any) -> None:
        CompiledRule.__init__(self, *args, **kwargs)

    __init__.__signature__ = inspect.Signature([first, params, *own, *flags])  # type: ignore[attr-defined]
    states = ", ".join([*facts["counters"], *facts["states"]]) or "nothing"
    doc = f"{name}, compiled from a rule; hyper-parameters: {', '.join(hypers)}; keeps {states} for each param."
    members = {"__init__": __init__, "__doc__": doc, "__module__": module, "source": text}
    members |= {"_rule": key, "_hyper_names": facts["hypers"], "_hypers": inspect.Signature(own)}
    return type(name, (CompiledRule,), members)
