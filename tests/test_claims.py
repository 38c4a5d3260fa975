"""Figures in the prose of README, docs and changelog are those of the sources and of committed results."""

from __future__ import annotations

import inspect
import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import figures
import gpu_all
import pytest
import torch

import fusedopt
from fusedopt import _C, _toolchain
from fusedopt._core.arguments import Options
from fusedopt._core.optimizer import FusedStep
from fusedopt.bench import baselines, cli, diff, networks, oracle, report, runner, sweeps
from fusedopt.bench.suites import SUITES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
README, ARCHITECTURE, PRECISION = "README.md", "docs/architecture.md", "docs/precision.md"
BENCHMARKING, CHANGELOG, FIGURES = "docs/benchmarking.md", "CHANGELOG.md", "benchmarks/README.md"
OPTIMIZERS, QUICKSTART, MEMORY = "docs/optimizers.md", "docs/quickstart.md", "docs/memory.md"


def text_of(name: str) -> str:
    return " ".join((ROOT / name).read_text().split())


def constant(path: str, name: str) -> int:
    """A C++ constant whose definition is numbers and shifts."""
    (found,) = set(re.findall(rf"\b{name} = (?:int64_t{{)?([\d <*+]+)", (ROOT / "csrc" / path).read_text()))
    return int(eval(found))


def measured(file: str, name: str, against: str = "", which: str = "measured") -> float:
    findings = json.loads((RESULTS / f"{file}.json").read_text())["findings"]
    (one,) = (f for f in findings if f["measurement"] == name and f["against"].endswith(against))
    return float(one[which]["value"] if which == "measured" else one[which])


def end_of_step(task: str) -> dict[str, float]:
    findings = json.loads((RESULTS / "end-of-step-20261128.json").read_text())["findings"]
    (ratio,) = (f["ratio"] for f in findings if task in f["task"])
    return {key: round(value, 2) for key, value in ratio.items()}


def ratios(file: str) -> dict[tuple[str, str], dict[str, float]]:
    """Of a run of narrow.py or cold.py, by workload and rival."""
    findings = json.loads((RESULTS / f"{file}.json").read_text())["findings"]
    return {
        (f["workload"], f["against"]): {key: round(value, 2) for key, value in f["ratio"].items()} for f in findings
    }


def of_stable_abi(way: str) -> float:
    return float(json.loads((RESULTS / "stable-abi-20261129.json").read_text())["nanoseconds a tensor"][way])


def offloaded(ours: str) -> dict[str, Any]:
    """A step of ours against DeepSpeed's: medians in ms, how many times as fast, what was asked."""
    findings = json.loads((RESULTS / "offload-20261130.json").read_text())["findings"]
    (one,) = (f for f in findings if f["ours"] == ours and f["against"].startswith("DeepSpeed"))
    return {**one["ratio"], "ms": one["medians"][ours] / 1e6, "asked": one["asked"]}


def spread(ratio: dict[str, float]) -> str:
    return f"({ratio['low']:.2f} to {ratio['high']:.2f})"


# Tables are of the newest; what is said of them has to follow.
LATEST = figures.newest().stem
DAY = ("20261128T012747", "20261128T034633", "20261128T074642", "20261128T101406")
RPROP = [measured(file, "1x32mi-rprop", "torch foreach") for file in DAY]
RADAM = [measured(file, "1x32mi-radam", "torch foreach") for file in DAY]
BARE = [measured(LATEST, f"1x32mi-{name}", "bare loop") for name in ("adamw", "rprop", "radam")]
SMALL = [measured(LATEST, f"1000x256-{name}", "torch fused", "theirs_ms") for name in ("sgd", "adamw")]
OF_A_THOUSAND = measured(LATEST, "1000x256-adamw", "torch fused", "ours_ms")
LARGE = [measured(LATEST, f"{suite}-adamw", "torch fused") for suite in ("1x32mi", "gpt2", "resnet50")] + [
    measured(LATEST, "resnet50-adamw-cold", "torch fused")
]
PUBLIC = {name: thing for name in fusedopt.__all__ if isinstance(thing := getattr(fusedopt, name), type)}
CLASSES = {name for name, cls in PUBLIC.items() if issubclass(cls, torch.optim.Optimizer)} - {"GenericOptimizer"}
EIGHT, CLIP = (end_of_step(task) for task in ("8-bit", "gpt2-adamw: clip"))
NARROW, COLD = ratios("narrow-20261129"), ratios("cold-20261129") | ratios("cold-20261129T231350")
OFFLOADED, COPIED = offloaded("fusedopt"), offloaded("fusedopt with copies")
STATES = {
    name: NARROW[f"AdamW, float32 with {name} states", "float32 states"]
    for name in ("bfloat16", "int8", "int4", "float16")
}
OF_TORCH = {workload: ratio for (workload, against), ratio in NARROW.items() if against.startswith("torch")}
CODES = {8: 2**3, 4: 2**1}  # codes below one unit
MOST = {"int8": 61_439, "uint8": 15 * 2**28, "int4": 11, "uint4": 191}
PARAMS = json.loads((ROOT / "docs/images/precision.json").read_text())["params"]


def least(code: str) -> str:
    share = 1 / CODES[int(code[-1])] / MOST[code]
    return f"{share:.1g}" if share > 1e-3 else f"{share:.0e}".replace("e-0", "e-")


CLAIMS = [
    (MEMORY, f"a step took {OFFLOADED['ms']:.0f} ms"),
    (MEMORY, f"{OFFLOADED['value']:.2f} times as long {spread(OFFLOADED)[:-1]}; asked were {OFFLOADED['asked']})"),
    (MEMORY, f"the two were alike: {COPIED['value']:.2f} {spread(COPIED)}"),
    (ARCHITECTURE, f"tiles of {constant('cpu/tile.h', 'kTile'):,} through L1"),
    (ARCHITECTURE, f"a warp for each {constant('step.h', 'kChunk'):,} elements"),
    (ARCHITECTURE, f"Each takes {constant('step.h', 'kChunk'):,} elements of one tensor"),
    (ARCHITECTURE, f"A chunk of the sums is {constant('step.h', 'kChunk'):,} elements"),
    (ARCHITECTURE, f"at the price of {constant('step.h', 'kAccumulators')} accumulators"),
    (ARCHITECTURE, f"{constant('step.h', 'kCodeBlock')} elements at a time, of which a lane has eight"),
    (ARCHITECTURE, f"when it takes {constant('cpu/parallel.h', 'kTeamSaves') // 2**10} Ki elements off the caller"),
    (ARCHITECTURE, f"for steps of {constant('host/python.h', 'kReleaseGil') // 2**20} Mi elements and more"),
    (ARCHITECTURE, f"Python's {sys.getswitchinterval() * 1000:.0f} ms switch interval"),
    (ARCHITECTURE, f"A launch carries {constant('cuda/table.h', 'kLargePatch'):,} of them"),
    (ARCHITECTURE, f"where {constant('cuda/table.h', 'kSmallPatch')} will do, in 4 KiB"),
    (ARCHITECTURE, f"which take CUDA {'.'.join(map(str, _toolchain.OLDEST_CUDA))} (where"),
    (
        ARCHITECTURE,
        f"takes {of_stable_abi('stable ABI'):.0f} ns, and {of_stable_abi('headers'):.0f} ns through the headers",
    ),
    (ARCHITECTURE, f"increment_version` does it, for {of_stable_abi('increment_version'):.0f} ns"),
    (ARCHITECTURE, f"the looks alone would take {4 * 1000 * of_stable_abi('stable ABI') / 1e6:.1f} ms"),
    (ARCHITECTURE, f"step over 1,000 small ones takes {OF_A_THOUSAND:.2f} ms with warm caches"),
    (README, f"nvcc of CUDA {'.'.join(map(str, _toolchain.OLDEST_CUDA))} or newer is found"),
    (
        ARCHITECTURE,
        f"a float32 overflows float32 from {math.floor(torch.finfo(torch.float32).max ** 0.5 / 1e18) / 10}e19 on",
    ),
    (CHANGELOG, f"ask memory for the next {constant('step.h', 'kChunk'):,} elements"),
    (CHANGELOG, f"shared memory, {constant('step.h', 'kCodeBlock')} elements a warp"),
    (CHANGELOG, f"has {EIGHT['value']} of the speed of one with float32 state"),
    (CHANGELOG, f"clip and step are {CLIP['value']} times as fast as torch's"),
    (CHANGELOG, f"over ResNet-50 {measured(DAY[3], 'resnet50-adamw-bfloat16'):.2f} times as fast"),
    (CHANGELOG, f"reaches down to {least('int8')} (signed) and {least('uint8')} of a block's largest"),
    (PRECISION, f"smaller than 1/{round(4 / torch.finfo(torch.bfloat16).eps)} of a param changes nothing"),
    (
        PRECISION,
        f"sign and 0 to {MOST['int8']:,} units | {least('int8')} | "
        f"sign and 0 to {MOST['int4']} units | {least('int4')} |",
    ),
    (
        PRECISION,
        f"0 to {MOST['uint8'] / 1e9:.1f}e9 units | {least('uint8')} | 0 to {MOST['uint4']} units | {least('uint4')} |",
    ),
    (PRECISION, f"| 4, 2, 2, {1 + 4 / _C.CODE_BLOCK:.2f}, {0.5 + 4 / _C.CODE_BLOCK:.2f} a state |"),
    (PRECISION, f"for each block of {_C.CODE_BLOCK} in the order of memory"),
    (PRECISION, f"Tensors of fewer than {_C.LEAST_CODED:,} elements keep float32"),
    (
        PRECISION,
        f"A block is {_C.CODE_BLOCK // 4} words of 32 bits, or {_C.CODE_BLOCK // 8} words of 4-bit",
    ),
    (PRECISION, f"times as fast with bfloat16 states as with float32 ones {spread(STATES['bfloat16'])}"),
    *((PRECISION, f"{STATES[name]['value']:.2f} with {name} {spread(STATES[name])}") for name in ("int8", "int4")),
    (PRECISION, f"{STATES['float16']['value']:.2f} with float16"),
    (FIGURES, f"{sum(ratio['value'] >= 1 for ratio in OF_TORCH.values())} were at least as fast as torch's best"),
    *(
        (FIGURES, f"{OF_TORCH[f'AdamW, all {dtype}']['value']:.2f} in {dtype}")
        for dtype in ("bfloat16", "float16", "float64")
    ),
    *(
        (FIGURES, f"| {ratio['value']:.2f}{'' if 'of' in against.split() else 'x'} {spread(ratio)} |")
        for (_, against), ratio in COLD.items()
    ),
    (README, f"is {min(LARGE):.1f} to {max(LARGE):.1f} times as fast as torch's fused step"),
    (README, f"| {len(CLASSES)} classes, their variants"),
    (README, f"AdamW, {networks.SMALL.elements / 1e6:.0f} M params | "),
    (README, f"GPT-2 of {SUITES['gpt2'].elements / 1e6:.0f} M params | "),
    (FIGURES, f"from {min(RPROP):.1f}x to {max(RPROP):.1f}x and RAdam from {min(RADAM):.1f}x to {max(RADAM):.1f}x"),
    (FIGURES, f"ours took {min(BARE):.2f} to {max(BARE):.2f} of a bare loop's"),
    (FIGURES, f"fused step takes {min(SMALL):.0f} to {max(SMALL):.0f} us for each of a thousand of 256 elements"),
    (FIGURES, f"torch takes {measured(DAY[3], '2matrices-muon', which='theirs_ms') / 1e3:.0f} s for a step of the two"),
    (PRECISION, f"a transformer of {round(PARAMS, -3):,} params"),
    (PRECISION, f"smaller than a {round(4 / torch.finfo(torch.bfloat16).eps)}th of its param rounds to nothing"),
    (
        QUICKSTART,
        f"for compute capability {', '.join(_toolchain.ARCHITECTURES[:-1])} and {_toolchain.ARCHITECTURES[-1]}",
    ),
    (BENCHMARKING, f"takes {['five', 'six'][oracle.STEPS - 5]} steps with new gradients"),
    (BENCHMARKING, f"more than a quarter ({runner.SPREAD['device'] - 1:.0%} for device time)".replace("5%", "5 %")),
    (BENCHMARKING, f"in the same rounds from {runner.LARGE // 2**20} MiB a step on"),
    (BENCHMARKING, f"Rivals of which {runner.LEAST_CALLS} calls do not fit"),
    (BENCHMARKING, f"step {sweeps.COUNTS[0]} to {sweeps.COUNTS[-1]:,} tensors of {sweeps.EACH} elements"),
    (BENCHMARKING, f"one tensor of 2^{sweeps.SIZES[0].bit_length() - 1} to 2^{sweeps.SIZES[-1].bit_length() - 1}"),
    (BENCHMARKING, f"one with {round(networks.SMALL.elements / 1e6)} million params"),
    (BENCHMARKING, f"up to {baselines.MOST_COMPILED['cuda']} tensors ({baselines.MOST_COMPILED['cpu']} on a CPU"),
    (BENCHMARKING, f"from 1, at least {round(diff.LEAST_NOISE * 100)} %"),
    (BENCHMARKING, f"| `schema` | {report.SCHEMA} |"),
]


@pytest.mark.parametrize(("document", "claim"), CLAIMS, ids=[claim[:60] for _, claim in CLAIMS])
def test_a_figure_is_that_of_its_source(document: str, claim: str) -> None:
    assert claim in text_of(document)


def test_bounds_that_prose_rounds() -> None:
    assert runner.HOST_SPREAD == 1.25  # "a quarter"
    assert cli.QUICK_SECONDS <= 60  # "a minute on two cores"
    assert gpu_all.TOTAL <= 600  # "under ten minutes"
    assert measured(DAY[3], "2matrices-muon", which="ours_ms") == pytest.approx(500, rel=0.1)  # "half a second"
    text = (ROOT / "csrc/clipping/cuda.cu").read_text()
    (most,) = re.findall(r"DenseGrads<(\d+)>", text)
    assert f"parameters of the launch, {int(most):,} of them, and a strided" in text_of(ARCHITECTURE)


def test_table_of_precisions() -> None:
    """Its rows are the losses at the end of each seed's training."""
    facts = json.loads((ROOT / "docs/images/precision.json").read_text())
    losses: dict[str, Any] = facts["losses"]
    plain = [run[-1] for run in losses["float32"]]
    for name, runs in losses.items():
        ends = [run[-1] for run in runs]
        gap = statistics.mean(a - b for a, b in zip(ends, plain, strict=True))
        behind = "| " if name == "float32" else f"{gap:+.4f} | {facts['size_of_steps'][name]:.2f} "
        row = f"| {name} | {statistics.mean(ends):.4f} | {max(ends) - min(ends):.4f} | {behind}|"
        assert row in text_of(PRECISION), row


def test_four_bits_are_behind_at_first() -> None:
    facts = json.loads((ROOT / "docs/images/precision.json").read_text())
    at, plain, coded = facts["evaluated"], *(facts["losses"][f"float32{name}"] for name in ("", ", 4-bit state"))
    behind = [
        statistics.mean(mine[i] - theirs[i] for mine, theirs in zip(coded, plain, strict=True)) for i in range(len(at))
    ]
    assert all(gap > 0.01 for step, gap in zip(at, behind, strict=True) if 0 < step <= 100)
    assert behind[-1] <= 0


@pytest.mark.parametrize("document", [OPTIMIZERS, PRECISION])
def test_who_takes_the_options(document: str) -> None:
    """Every optimizer but one takes all; what another has no use for is said."""
    text = text_of(document)
    assert re.search(r"Every optimizer but `LBFGS`", text)
    for name in fusedopt.__all__:
        cls = getattr(fusedopt, name)
        if not (isinstance(cls, type) and issubclass(cls, FusedStep)):
            continue
        for option in set(Options._fields) - set(inspect.signature(cls).parameters):
            assert f"`{name}` has no `{option}`" in text, name


@pytest.mark.parametrize(("code", "share"), [("int8", "sixteenth"), ("uint8", "sixteenth"), ("int4", "quarter")])
def test_a_code_is_off_by_no_more_than_is_said(code: str, share: str) -> None:
    assert re.search(
        rf"off by a sixteenth of itself and a unit at most.*by a {share}|a {share} of itself", text_of(PRECISION)
    )
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(64 * 256, generator=generator) * torch.exp2(3 * torch.randn(64 * 256, generator=generator))
    value = value.abs() if code.startswith("u") else value
    codes, scales = _C.encode(value, code, value)
    off = (_C.decode(codes, scales, value) - value).abs()
    unit = scales.repeat_interleave(256)
    bound = {"sixteenth": 1 / 16, "quarter": 1 / 4}[share]
    assert bool((off <= bound * value.abs() + unit).all())
    assert bool((off > 0.5 * bound * value.abs()).any())


def test_files_that_prose_cites_are_there() -> None:
    for document in [README, CHANGELOG, FIGURES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]:
        for cited in re.findall(
            r"benchmarks/results/[\w-]+\.json|docs/[\w/]+\.(?:md|json)|tests/\w+\.py", text_of(document)
        ):
            assert (ROOT / cited).exists(), (document, cited)


def test_a_step_takes_the_instructions_that_are_told() -> None:
    counted = json.loads((RESULTS / "instructions-20261130.json").read_text())["commits"].values()
    before, *_, now = counted
    text = (ROOT / "benchmarks/README.md").read_text()
    for name, counts in now.items():
        assert counts["one param"] <= before[name]["one param"]
        # "A fifth more."
        each = counts["each further"] / before[name]["each further"]
        assert each < 1 if name == "Adafactor" else 1.15 < each < 1.22
        row = [f"{of[name][kind]:,}" for kind in ("one param", "each further") for of in counted]
        assert f"| {name} | {' | '.join(row)} |" in text


def test_what_only_a_device_runs_is_listed() -> None:
    listed = text_of(ARCHITECTURE).partition("What only a device runs")[2].partition("**")[2].partition("**")[0]
    sources = [path for kind in ("h", "cuh", "cu", "cpp") for path in (ROOT / "csrc").rglob(f"*.{kind}")]
    found = {path for path in sources if re.search(r"__CUDA_ARCH__|__CUDACC__", path.read_text())}
    assert {ROOT / "csrc" / name for name in re.findall(r"\| `([\w/]+\.(?:h|cuh))`", listed)} == found
