"""Rules that torch does not have, each against the package it comes from: 33.5 million elements, 1,000 tensors of 256.

python benchmarks/originals.py [--quick] [--only NAME] [--threads N] [--seconds N] [--out FILE]

A package that is not installed is named and left out; tests/peers/requirements.txt has the versions. The bare loop
moves the bytes of Adam and computes next to nothing: its time, times a rule's bytes over Adam's, is the floor.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from alone import find_alone
from rich.table import Table
from torch.nn import Parameter

import fusedopt
from fusedopt.bench.machine import machine
from fusedopt.bench.method import Contestant, Effort, compare, interleave, summarise, warm_up
from fusedopt.bench.streaming import BARE, BareLoop
from fusedopt.bench.tables import console

OURS, CONTROL, ORIGINAL = "fusedopt", "fusedopt again", "original"
Shapes = Sequence[tuple[int, ...]]
SUITES: dict[str, Shapes] = {"33.5 M": [(1024, 1024)] * 32, "1000 x 256": [(256,)] * 1000}
QUICK: dict[str, Shapes] = {"33.5 M": [(256, 256)] * 4, "1000 x 256": [(256,)] * 50}
# A step at most 1.1 times the floor where memory is the limit; at least 40 times the original's where calls are.
ASKED = {"33.5 M": ("times the floor, at most", 1.1), "1000 x 256": ("times as fast, at least", 40.0)}


@dataclass(frozen=True)
class Rule:
    """A class of ours and its original; `numbers` are the float32 that a step reads and writes of each element."""

    ours: str
    original: str
    numbers: int = 7
    called: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.ours}({', '.join(f'{key}={value}' for key, value in self.called.items())})"


_RELATIVE: dict[str, Any] = {"scale_parameter": False, "relative_step": False}
_TF: dict[str, Any] = {"initial_accumulator_value": 1.0, "eps_in_sqrt": True, "lr_in_momentum": True}
RULES = [
    Rule("AdamWScheduleFree", "schedulefree.AdamWScheduleFree"),
    Rule("RAdamScheduleFree", "schedulefree.RAdamScheduleFree"),
    Rule("SGDScheduleFree", "schedulefree.SGDScheduleFree", 5),
    Rule("NAdamW", "timm.optim.nadamw.NAdamW"),
    Rule("LaProp", "timm.optim.laprop.LaProp"),
    Rule("AdaBelief", "timm.optim.adabelief.AdaBelief"),
    # g and v are read for the RMS as well.
    Rule("StableAdamW", "optimi.StableAdamW", 9),
    # g and last_grad, or p, g and m, are read for the sums as well.
    Rule("MARS", "timm.optim.mars.Mars", 11, {}, {"optimize_1d": True}),
    # h is only read.
    Rule("SophiaG", "sophia_opt.SophiaG", 6),
    # g is read for the norm as well; then g, and p and m both ways.
    Rule("NovoGrad", "timm.optim.nvnovograd.NvNovoGrad", 6),
    # p, g, s and p0 are read for the sums as well; the update writes p0, too.
    Rule("Prodigy", "prodigyopt.Prodigy", 15),
    Rule("AdamW", "timm.optim.adamw.AdamWLegacy", 10, {"caution": True}, {"caution": True}),
    Rule("Lion", "timm.optim.lion.Lion", 7, {"caution": True}, {"caution": True}),
    Rule("Adan", "timm.optim.adan.Adan", 13, {"caution": True}, {"caution": True}),
    Rule("SGD", "timm.optim.sgdw.SGDW", 5, {"momentum": 0.9, "decoupled_weight_decay": True}, {"momentum": 0.9}),
    Rule("RMSprop", "timm.optim.rmsprop_tf.RMSpropTF", 7, {"momentum": 0.9, "alpha": 0.9, "eps": 1e-10, **_TF},
         {"momentum": 0.9}),
    # g twice for the sums, p and g for the step; what its states take is next to nothing.
    Rule("Adafactor", "transformers.optimization.Adafactor", 6, {"eps": (1e-30, 1e-3), **_RELATIVE}, _RELATIVE),
    Rule("ADOPT", "timm.optim.adopt.Adopt", 7, {"decouple": True}, {"decoupled": True, "clip_exp": 0.25}),
    Rule("AdEMAMix", "pytorch_optimizer.AdEMAMix", 9, {}, {"weight_decay": 0.0}),
    Rule("AdamAtan2", "adam_atan2_pytorch.AdamAtan2", 7, {}, {"decoupled_wd": False}),
]  # fmt: skip


def original(rule: Rule) -> Any:
    module, _, name = rule.original.rpartition(".")
    if module.startswith("timm."):
        find_alone("timm", "optim")
    return getattr(importlib.import_module(module), name)


def params(shapes: Shapes) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def measure(rule: Rule, suite: str, shapes: Shapes, effort: Effort) -> dict[str, Any]:
    """Rounds of both, of ours once more, and of the bare loop over as many elements."""
    held = {name: params(shapes) for name in (OURS, CONTROL, ORIGINAL)}
    common = {"lr": 1e-3, "weight_decay": 0.0}
    ours = getattr(fusedopt, rule.ours)
    made = {name: ours(held[name], **{**common, **rule.called}) for name in (OURS, CONTROL)}
    made[ORIGINAL] = original(rule)(held[ORIGINAL], **{**common, **rule.given})
    getattr(made[ORIGINAL], "train", int)()
    contestants = [Contestant(name, optimizer.step) for name, optimizer in made.items()]
    warm_up(contestants, 1)
    # Some write into gradients, so that only the first step of both is from the same ones.
    apart = max((p - q).abs().max().item() for p, q in zip(held[OURS], held[ORIGINAL], strict=True))
    if not apart <= 1e-5:
        return {"rule": str(rule), "suite": suite, "failed": f"{apart:.1e} apart after a step of 1e-3"}
    contestants.append(Contestant(BARE, BareLoop(sum(p.numel() for p in held[OURS]))))
    warm_up(contestants, effort.warmup)
    rounds = interleave(contestants, effort)
    medians = {name: summarise(samples).median for name, samples in rounds.items()}
    finding: dict[str, Any] = {
        "rule": str(rule),
        "original": rule.original,
        "suite": suite,
        "medians": medians,
        "rounds": rounds,
    }
    finding["faster"] = asdict(compare(rounds[ORIGINAL], rounds[OURS]))
    finding["control"] = asdict(compare(rounds[CONTROL], rounds[OURS]))
    finding["floors"] = medians[OURS] / (medians[BARE] * 4 * rule.numbers / BareLoop.BYTES)
    return finding


def table_of(findings: Sequence[dict[str, Any]]) -> Table:
    table = Table("rule", "params", "ours, ms", "original, ms", "times as fast", "of the floor", "again", "asked")
    for found in findings:
        if "failed" in found:
            table.add_row(found["rule"], found["suite"], found["failed"])
            continue
        words, figure = ASKED[found["suite"]]
        milliseconds = [f"{found['medians'][name] / 1e6:.3f}" for name in (OURS, ORIGINAL)]
        faster = f"{found['faster']['value']:.1f} ({found['faster']['low']:.1f} to {found['faster']['high']:.1f})"
        again = f"{found['control']['value']:.2f}"
        table.add_row(
            found["rule"], found["suite"], *milliseconds, faster, f"{found['floors']:.2f}", again, f"{figure:g} {words}"
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small params, few rounds: shows that all works")
    parser.add_argument("--only", default="", help="rules whose names hold this")
    parser.add_argument("--threads", type=int, help="torch's threads; by default what torch chooses")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the measurements (default: 10)")
    parser.add_argument("--out", type=Path, help="where to write machine, command and raw rounds as JSON")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    effort = Effort(rounds=31, repeat=1, seconds=options.seconds)
    if options.quick:
        effort = replace(effort, rounds=3, seconds=1.0, minimum=3, warmup=1)
    out, findings, failed = console(), [], False
    for rule in (rule for rule in RULES if options.only.lower() in rule.ours.lower()):
        try:
            original(rule)
        except ImportError as error:
            out.print(f"{rule.original} is left out: {error}")
            continue
        for suite, shapes in (QUICK if options.quick else SUITES).items():
            findings.append(measure(rule, suite, shapes, effort))
            failed = failed or "failed" in findings[-1]
    out.print(table_of(findings))
    if options.out:
        command = shlex.join(["python", *sys.argv])
        options.out.write_text(json.dumps({"machine": machine(command), "findings": findings}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
