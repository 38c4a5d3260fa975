"""The parts that a fused optimizer is made of: what one of them keeps, no other file of the package touches."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "fusedopt"
# What torch's GradScaler reads of any optimizer.
TORCHS = {"_step_supports_amp_scaling"}
PARTS = ("averaging", "max_grad_norm", "scaling", "kept", "checkpoints", "optimizer")


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def kept_by(tree: ast.Module) -> set[str]:
    """The private attributes that classes of a file begin with or assign, but for what their subclasses have to say."""
    found = set()
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                found.add(ast.unparse(node.target))
            elif isinstance(node, ast.Assign):
                found.update(ast.unparse(target) for target in node.targets)
        for target in (node for node in ast.walk(cls) if isinstance(node, ast.Attribute)):
            if isinstance(target.ctx, ast.Store) and ast.unparse(target.value) == "self":
                found.add(target.attr)
    return {name for name in found if private(name)} - TORCHS


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def others(part: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "_core" / f"{part}.py":
            yield path, tree_of(path)


def test_no_part_touches_what_another_keeps() -> None:
    seen = []
    for part in PARTS:
        kept = kept_by(tree_of(PACKAGE / "_core" / f"{part}.py"))
        seen += [kept]
        for path, tree in others(part):
            # A class of another file may have an attribute of this name for itself, as GenericOptimizer has.
            theirs = kept - kept_by(tree)
            named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in theirs]
            assert not named, f"{path}:{named[0].lineno} touches {named[0].attr}, which {part}.py keeps"
    assert {"_plan", "_precision", "_copies", "_draws", "_given"} <= seen[PARTS.index("kept")]
    assert {"_ema_decay"} <= seen[0]
    assert {"_max_grad_norm", "_measured"} <= seen[1]
