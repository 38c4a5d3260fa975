"""``python -m fusedopt.convert``: an optimizer's file of another package, of torch or of fusedopt, as another's."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

import fusedopt

from ._core.optimizer import FusedStep
from ._files import FileError, read, refuse_existing, write
from ._foreign import class_of_file, load_foreign, refuse_other_kind, shape_in
from ._foreign_back import foreign_state_dict
from ._peers.peer import largest_shape
from ._peers.registry import OTHERS, PEERS, name_of

# The option that keeps what a state has beside the rule's.
_KEPT: dict[str | None, dict[str, Any]] = {
    "master": {"master_weights": "float32"},
    "remainder": {"master_weights": "remainder"},
    "compensation": {"rounding": "kahan"},
}
_OURS = ("fusedopt", "torch")
_OF_JSON = {"true": "True", "false": "False"}
# Of bitsandbytes, six names for each rule.
_VARIANT = re.compile(r"^bitsandbytes\.(Paged|.*(8|32)bit)")
_DESCRIPTION = """\
Write the optimizer's state of a checkpoint as another class would have saved it: to go on with fusedopt or torch.optim
where another package has trained, or the other way. What steps by another rule is refused, with the line of maths that
differs."""
_EPILOG = """\
names: PACKAGE.CLASS such as bitsandbytes.AdamW8bit, fusedopt.Lion or torch.AdamW; --to torch and --to fusedopt stand
for the class that has the rule. docs/moving-in.md has all of them.

exit status: 0 written, 1 refused, 2 not understood. Nothing is written unless all of it is.

examples:
  python -m fusedopt.convert optimizer.pt --from bitsandbytes.AdamW8bit --to torch
  python -m fusedopt.convert last.ckpt --key optimizer_states.0 --from deepspeed.DeepSpeedCPUAdam \\
      --set adam_w_mode=False --to fusedopt.Adam --out moved.ckpt
  python -m fusedopt.convert ours.pt --from fusedopt.AdamW --to bitsandbytes.AdamW"""


class ConvertError(Exception):
    """A sentence about what was asked for, and what to do."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m fusedopt.convert",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("file", type=Path, metavar="FILE", help="what torch.save has written, or a .safetensors file of this command")
    add("--from", dest="source", required=True, metavar="NAME", help="whose optimizer the file is of")
    add("--to", dest="target", required=True, metavar="NAME", help="whose it shall be")
    add("--out", type=Path, metavar="FILE", help="where to (default: FILE with the name of --to before its suffix)")
    add("--key", metavar="KEY", help="where in FILE the state dict is, such as optimizer or optimizer_states.0")
    add(
        "--set",
        action="append",
        default=[],
        dest="told",
        metavar="NAME=VALUE",
        help="what the other's constructor was given and its files do not show, such as adam_w_mode=False; repeat",
    )
    add("--force", action="store_true", help="write over a file that exists")
    add("--no-weights-only", action="store_true", help="unpickle whatever FILE holds, which runs code that is in it")
    return made


def convert(
    state_dict: Mapping[str, Any], source: str, target: str, **constructed_with: Any
) -> tuple[dict[str, Any], str]:
    """The state dict of `source` as `target` would have saved it, and the name of the latter's class.

    TypeError and ValueError as of `load_foreign`, `foreign_state_dict` and `load_state_dict`.
    """
    told: dict[str, dict[str, Any]] = {"source": {}, "target": {}}
    for key, value in constructed_with.items():
        its = [side for side, name in (("source", source), ("target", target)) if _has(name, key)]
        if not its:
            raise ConvertError(f"neither {source} nor {target} has a {key!r} that its groups do not show")
        for side in its:
            try:
                refuse_other_kind(key, value, PEERS[name_of(source if side == "source" else target)].attributes[key])
            except TypeError as error:
                raise ConvertError(f"--set {key}: {error}") from None
            told[side][key] = value
    stays = source.startswith("fusedopt.") and target.partition(".")[0] == "fusedopt"
    with warnings.catch_warnings():
        if stays:
            warnings.simplefilter("ignore")  # what the stand-in's options lose is in the file
        optimizer = _loaded(state_dict, source, target, told["source"])
    ours = type(optimizer).__name__
    if target.partition(".")[0] not in _OURS:
        return foreign_state_dict(optimizer, target, **told["target"]), name_of(target)
    wanted = target.partition(".")[2].rpartition(".")[2] or ours
    if wanted != ours:
        raise ConvertError(f"the file steps as {ours} does; give --to {target.partition('.')[0]}.{ours}")
    # What ours have saved is as it would be, with options of groups, averages and draws of theirs.
    made = dict(state_dict) if stays else optimizer.state_dict()
    if target.startswith("fusedopt"):
        return made, f"fusedopt.{ours}"
    return _for_torch(type(optimizer), made), f"torch.optim.{ours}"


def _has(name: str, key: str) -> bool:
    peer = PEERS.get(name_of(name))
    return peer is not None and key in peer.attributes


def _loaded(state_dict: Mapping[str, Any], source: str, target: str, told: Mapping[str, Any]) -> FusedStep:
    """One of ours that the file has been loaded into, over tensors that stand for the params and hold no memory."""
    own = source.partition(".")[0] in _OURS
    cls = _own_class(source) if own else class_of_file(state_dict, source, **told)
    if not own and target.startswith("fusedopt.") and target != f"fusedopt.{cls.__name__}":
        # Where there is no decay, Adam's file is AdamW's, too.
        cls = _own_class(target)
    shape = largest_shape if own else lambda state: shape_in(source, state)
    params: list[list[Parameter]] = []
    unknown: dict[Parameter, Any] = {}
    for group in state_dict["param_groups"]:
        params.append([])
        for at in group["params"]:
            state = state_dict["state"].get(at) or {}
            params[-1].append(_stand_in(state, shape(state) if state else (1, 1)))
            if not state:
                unknown[params[-1][-1]] = at
    groups = [{"params": its} for its in params]
    kept = {_kept(state) for state in state_dict["state"].values()} - {None}
    options = dict(_KEPT[kept.pop()]) if len(kept) == 1 else {}
    if any("ema" in state for state in state_dict["state"].values()):
        options["ema_decay"] = state_dict.get("ema_decay", 0.999)
    optimizer: FusedStep = cls(groups, **options)
    if own:
        optimizer.load_state_dict(dict(state_dict))
    else:
        load_foreign(optimizer, state_dict, source, **told)
    for param, at in unknown.items():
        if optimizer.state.get(param):
            raise ConvertError(
                f"the file has no state of param {at}, for which one has to be made by its shape; load the file by "
                "fusedopt.load_foreign into an optimizer over the model"
            )
    return optimizer


def _kept(state: Mapping[str, Any]) -> str | None:
    """What of a param in 16 bits is kept beside it, by our names."""
    if isinstance(master := state.get("master_param"), torch.Tensor):
        return "remainder" if master.dtype == torch.int16 else "master"
    lost = state.get("kahan_comp")
    if isinstance(lost, torch.Tensor) and lost.is_floating_point():
        return "compensation"
    return next((key for key in _KEPT if key in state), None)


def _stand_in(state: Mapping[str, Any], shape: tuple[int, ...]) -> Parameter:
    tensors = [v for v in _tensors(state) if v.ndim and (v.is_floating_point() or v.is_complex())]
    dtypes = {v.dtype for v in tensors}
    halves = [dtype for dtype in (torch.bfloat16, torch.float16) if dtype in dtypes]
    if not halves and _kept(state):
        halves = [torch.bfloat16]
    wide = [dtype for dtype in (torch.complex128, torch.complex64, torch.float64) if dtype in dtypes]
    dtype = next(iter([*halves, *wide]), torch.float32)
    return Parameter(torch.zeros((), dtype=dtype).expand(shape))


def _tensors(state: Mapping[str, Any]) -> list[torch.Tensor]:
    found = [v for v in state.values() if isinstance(v, torch.Tensor)]
    return found + [v for its in state.values() if isinstance(its, Mapping) for v in _tensors(its)]


def _own_class(name: str) -> Any:
    cls = getattr(fusedopt, name.rpartition(".")[2], None)
    if "." in name and isinstance(cls, type) and issubclass(cls, FusedStep):
        return cls
    has = sorted(n for n in fusedopt.__all__ if _is_class(getattr(fusedopt, n)))
    raise ConvertError(f"there is no {name}; give fusedopt. or torch. and one of {', '.join(has)}")


def _is_class(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, FusedStep) and hasattr(found, "_rule")


def _for_torch(cls: type[FusedStep], made: Mapping[str, Any]) -> dict[str, Any]:
    """Without what torch's class does not read; refused where it would step otherwise."""
    if not hasattr(torch.optim, cls.__name__):
        raise ConvertError(f"torch.optim has no {cls.__name__}; give --to fusedopt.{cls.__name__}")
    for index, group in enumerate(made["param_groups"]):
        for key, value in cls._beyond.items():
            if group.get(key, value) != value:
                raise ConvertError(
                    f"torch.optim.{cls.__name__} has no {key}={group[key]!r}, by which param_groups[{index}] steps; "
                    f"give --to fusedopt.{cls.__name__}"
                )
    beside = sorted({key for its in made["state"].values() for key in its} & {*map(str, _KEPT), "ema"})
    beside += sorted(made.keys() - {"state", "param_groups"})
    if beside:
        warnings.warn(f"{', '.join(beside)} of the file is not for torch.optim and stays behind", stacklevel=2)
    state = {at: {k: v for k, v in its.items() if k not in beside} for at, its in made["state"].items()}
    return {"state": state, "param_groups": made["param_groups"]}


def _class_named(name: str, role: str) -> str:
    """A name with its class: of a package with one class alone that need not be given."""
    package, _, cls = name.partition(".")
    if cls or (package in _OURS and role == "--to"):
        return name
    known = sorted(its for its in PEERS if its.startswith(f"{package}.") and not _VARIANT.search(its))
    if len(known) == 1:
        return known[0]
    if package in _OURS:
        raise ConvertError(f"{role} {name}: a file does not say its class; give {name}.AdamW or whichever it is of")
    raise ConvertError(
        f"{role} {name}: a file does not say its class; give one of {', '.join(known)}"
        if known
        else f"{role} {name}: there is no such package here; there are "
        f"{', '.join(sorted({its.partition('.')[0] for its in (*PEERS, *OTHERS)} | set(_OURS)))}"
    )


def _told_of(pairs: Sequence[str]) -> dict[str, Any]:
    told = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConvertError(f"--set {pair}: give NAME=VALUE, such as adam_w_mode=False")
        try:
            # JSON's words too, since DeepSpeed's configurations are JSON.
            told[name] = ast.literal_eval(_OF_JSON.get(text, text))
        except (ValueError, SyntaxError):
            told[name] = text
    return told


def _find(content: Any, key: str | None) -> tuple[Any, list[Any]]:
    """The state dict, and the keys that lead to it."""
    path, left, found = _follow(content, key.split(".") if key else [])
    if left:
        raise FileError(f"--key {key}: there is no {left[0]!r}; there is {_some(its for its, _ in _inside(found))}")
    if _is_state_dict(found):
        return found, path
    where = f"under {key}" if key else "at its top"
    inner = [".".join(its) for its in _state_dicts(found)]
    raise FileError(
        f"the file has no optimizer's state dict {where}, that is, a dict with 'state' and 'param_groups'"
        + (f"; give --key {' or '.join(f'{key}.{its}' if key else its for its in inner)}" if inner else "")
    )


def _follow(found: Any, parts: Sequence[str]) -> tuple[list[Any], Sequence[str], Any]:
    """As far as there are keys that say these parts: the keys, the parts that are left, and what is there.

    Keys may have dots of their own, and be numbers.
    """
    furthest: tuple[list[Any], Sequence[str], Any] = [], parts, found
    for key, value in _inside(found) if parts else ():
        words = str(key).split(".")
        if list(parts[: len(words)]) == words:
            path, left, end = _follow(value, parts[len(words) :])
            if len(left) < len(furthest[1]):
                furthest = [key, *path], left, end
    return furthest


def _inside(found: Any) -> Iterable[tuple[Any, Any]]:
    return found.items() if isinstance(found, Mapping) else enumerate(found) if isinstance(found, list) else ()


def _is_state_dict(found: Any) -> bool:
    if not isinstance(found, Mapping) or not {"state", "param_groups"} <= found.keys():
        return False
    groups, state = found["param_groups"], found["state"]
    return isinstance(groups, list) and isinstance(state, Mapping) and all("params" in group for group in groups)


def _state_dicts(found: Any, depth: int = 3) -> list[list[str]]:
    """The keys that lead to each state dict, not far down."""
    made = []
    for key, value in _inside(found):
        if _is_state_dict(value):
            made.append([str(key)])
        elif depth:
            made += [[str(key), *its] for its in _state_dicts(value, depth - 1)]
    return made


def _some(inside: Any) -> str:
    keys = [str(key) for key in inside]
    return ", ".join(keys[:10]) + (", ..." if len(keys) > 10 else "") if keys else "nothing inside"


def _put(content: Any, path: Sequence[Any], made: Mapping[str, Any]) -> Any:
    if not path:
        return made
    content[path[0]] = _put(content[path[0]], path[1:], made)
    return content


def run(options: argparse.Namespace) -> str:
    """What was written, in a sentence."""
    source, target = _class_named(options.source, "--from"), _class_named(options.target, "--to")
    told = _told_of(options.told)
    if not options.file.is_file():
        raise FileError(f"{options.file} is no file")
    out = options.out or options.file.with_name(f"{options.file.stem}.{options.target}{options.file.suffix}")
    refuse_existing(out, options.force)
    if source.startswith("torchao."):
        _import_torchao()
    content = read(options.file, not options.no_weights_only)
    state_dict, path = _find(content, options.key)
    made, name = convert(state_dict, source, target, **told)
    write(out, _put(content, path, made), options.force)
    params = sum(len(group["params"]) for group in made["param_groups"])
    return f"written: {out}, of {name}, with states of {len(made['state'])} of {params} params"


def _import_torchao() -> None:
    """Its tensors are of its own classes, which torch.load knows once they are imported."""
    try:
        importlib.import_module("torchao.optim")
    except ImportError as error:
        raise FileError(f"torchao's files hold tensors of its own, and it cannot be imported: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 1 refused, 2 not understood."""
    options = parser().parse_args(arguments)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        try:
            said = run(options)
        except ConvertError as error:
            print(error, file=sys.stderr)
            return 2
        except (FileError, TypeError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
        except OSError as error:
            print(f"{error.filename or options.file}: {error.strerror or error}", file=sys.stderr)
            return 1
    for message in dict.fromkeys(str(its.message) for its in seen):
        print(f"take care: {message}", file=sys.stderr)
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
