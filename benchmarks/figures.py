"""Write the newest results into the tables of README.md and benchmarks/README.md: figures are generated, not typed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from distributed import BOTH, REDUCES, UNCLIPPED
from narrow import DTYPES, MIXES, title_of

from fusedopt.bench.baselines import OURS
from fusedopt.bench.contest import short
from fusedopt.bench.method import Ratio, compare

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CPU, GPU, SPEED, OF_SHARDS, STORAGES = "figures", "gpu figures", "speed", "sharded figures", "storages"

# What a person in a hurry wants to know, and which lines of the newest results answer.
IN_SHORT = {
    "1000x256-adamw-cold": "many small tensors: AdamW, 1,000 of 256 elements",
    "1x32mi-adamw": "one large tensor: AdamW, 32 Mi elements",
    "resnet50-adamw-bfloat16": "16 bits: AdamW, ResNet-50, all in bfloat16",
    "gpt2-adafactor": "Adafactor: GPT-2 of 124 M params",
}

# The workload of benchmarks/distributed.py that the README shows.
SHARDED = "100 params: AdamW"

NO_GPU = """No GPU has run this yet, so there are no figures to give."""


def newest(results: Path = RESULTS) -> Path:
    """Of the runs on a CPU, whose files bear a date and nothing else."""
    return max(results.glob("[0-9]*.json"))


def newest_gpu(results: Path = RESULTS) -> Path | None:
    return max(results.glob("gpu-*.json"), default=None)


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def measured(finding: dict[str, Any]) -> str:
    ratio, unit = finding["measured"], finding["unit"]
    interval = "" if ratio["low"] == ratio["high"] else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return f"{ratio['value']:.2f}{unit}{interval}"


def goal(finding: dict[str, Any]) -> str:
    if finding["asked"] is None:
        return "none"
    bound = "at most" if finding["at_most"] else "at least"
    return f"{bound} {finding['asked']:g}{finding['unit']}: {finding['verdict']}"


def row(finding: dict[str, Any]) -> str:
    times = [f"{finding[key]:.3g}" if finding[key] is not None else "" for key in ("theirs_ms", "ours_ms")]
    cells = [finding["measurement"], finding["against"], *times, measured(finding), goal(finding)]
    return f"| {' | '.join(cells)} |"


def gpu_row(finding: dict[str, Any]) -> str:
    times = [number(finding[key] * 1e3) if finding[key] is not None else "" for key in ("theirs_ms", "ours_ms")]
    rate = ""
    if finding["gb_per_s"] is not None:
        share = f" ({finding['of_streaming']['value'] * 100:.0f} %)" if finding["of_streaming"] else ""
        rate = f"{finding['gb_per_s']:.0f}{share}"
    cells = [finding["measurement"], finding["against"], *times, rate, measured(finding), goal(finding)]
    return f"| {' | '.join(cells)} |"


def figures(path: Path) -> str:
    report = json.loads(path.read_text())
    machine = report["machine"]
    lines = [
        "| workload | against | theirs, ms | ours, ms | measured (90 % interval) | goal |",
        "|---|---|---|---|---|---|",
        *(row(finding) for finding in report["findings"]),
        "",
        f"{machine['cpu']}, {machine['threads']} threads, {machine['fusedopt']['cpu']['chosen']}, "
        f"torch {machine['torch']}, {machine['date'][:10]}; raw rounds in `benchmarks/results/{path.name}`.",
    ]
    return "\n".join(lines)


def newest_narrow(results: Path = RESULTS) -> Path:
    return max(results.glob("narrow-*.json"))


def storages(path: Path) -> str:
    """How many times as fast as the rival each rule is in each storage, a line a rule."""
    report = json.loads(path.read_text())
    found = {finding["workload"]: finding for finding in report["findings"]}
    rules = sorted({name.partition(",")[0] for name in found})

    def cell(name: str) -> str:
        if name not in found:
            return ""
        ratio, asked = found[name]["ratio"], found[name]["asked"]
        return f"**{ratio['value']:.2f}**" if ratio["high"] < asked else f"{ratio['value']:.2f}"

    dtypes = [short(dtype) for dtype in DTYPES]
    rows = [[rule, *(f"{rule}, all {d}" for d in dtypes), *(title_of(rule, mix) for mix in MIXES)] for rule in rules]
    machine = report["machine"]
    lines = [
        f"| | {' | '.join(f'all {dtype}' for dtype in dtypes)} | {' | '.join(MIXES)} |",
        "|---" * (1 + len(dtypes) + len(MIXES)) + "|",
        *(f"| {rule} | {' | '.join(map(cell, names))} |" for rule, *names in rows),
        "",
        f"{machine['cpu']}, {machine['threads']} threads, {machine['fusedopt']['cpu']['chosen']}, "
        f"torch {machine['torch']}, {machine['date'][:10]}; raw rounds in `benchmarks/results/{path.name}`.",
    ]
    return "\n".join(lines)


def newest_sharded(results: Path = RESULTS) -> Path | None:
    return max(results.glob("distributed-*.json"), default=None)


def short_row(what: str, theirs_ms: float, ours_ms: float, ratio: Ratio) -> str:
    times = f"{theirs_ms:.3g} | {ours_ms:.3g}"
    return f"| {what} | {times} | **{ratio.value:.2f}x** ({ratio.low:.2f} to {ratio.high:.2f}) |"


def in_loop(report: dict[str, Any]) -> tuple[float, float, Ratio]:
    """AdamW's step right after backward of a network: torch's time and ours in ms, and their ratio."""
    (rounds,) = (m["rounds_ns"] for m in report["measurements"] if m["name"] == "training-loop, in loop")
    line = next(f for f in report["findings"] if f["measurement"] == "training-loop")
    return line["theirs_ms"], line["ours_ms"], compare(rounds["torch fused"], rounds[OURS])


def speed(path: Path, narrow: Path, sharded: Path | None) -> str:
    """The README's table; shards have a row as soon as they have been measured."""
    report = json.loads(path.read_text())
    rows = []
    for name, what in IN_SHORT.items():
        line = next(f for f in report["findings"] if f["measurement"] == name)
        ratio = Ratio(**line["measured"])
        rows.append(short_row(what, line["theirs_ms"], line["ours_ms"], ratio))
    rows.append(short_row("within a real training loop: AdamW, 13 M params", *in_loop(report)))
    (coded,) = (f for f in json.loads(narrow.read_text())["findings"] if "with int8" in f["workload"])
    whole, codes = (coded["medians"][name] / 1e6 for name in ("float32", OURS))
    rows.append(
        short_row(
            "8-bit states, against our own float32 states: as the second row", whole, codes, Ratio(**coded["ratio"])
        )
    )
    if sharded is not None:
        findings = json.loads(sharded.read_text())["findings"]
        line = next(f for f in findings if f["workload"] == SHARDED and f["against"] == "torch fused")
        torchs, mine = (median(line["nanoseconds"][name]) / 1e6 for name in ("torch fused", OURS))
        what = "sharded: AdamW, 100 DTensors, two processes of one thread"
        rows.append(short_row(what, torchs, mine, Ratio(**line["ratio"])))
    machine = report["machine"]
    # Rows that another program measured may be of another day and another machine.
    others = {"8-bit states": narrow, "shards": sharded}
    elsewhere = [
        f"; the row of {what}: {its['cpu']}, {its['date'][:10]}"
        for what, file in others.items()
        if file is not None and (its := json.loads(file.read_text())["machine"])["cpu"] != machine["cpu"]
    ]
    return "\n".join(
        [
            "| a step of | torch, ms | ours, ms | times as fast (90 % interval) |",
            "|---|---|---|---|",
            *rows,
            "",
            f"{machine['cpu']}, {machine['threads']} threads, {machine['fusedopt']['cpu']['chosen']}, "
            f"torch {machine['torch']}, {machine['date'][:10]}{''.join(elsewhere)}.",
        ]
    )


def gpu_figures(path: Path | None) -> str:
    if path is None:
        return NO_GPU
    report = json.loads(path.read_text())
    machine, gpu = report["machine"], report["machine"]["gpu"]
    absent = f" Not installed there: {', '.join(machine['absent'])}." if machine["absent"] else ""
    lines = [
        "| workload, clock | against | theirs, us | ours, us | GB/s (of a copy) | measured (90 % interval) | goal |",
        "|---|---|---|---|---|---|---|",
        *(gpu_row(finding) for finding in report["findings"]),
        "",
        f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}, torch {machine['torch']}, {machine['date'][:10]}; "
        f"raw rounds in `benchmarks/results/{path.name}`.{absent}",
        # What a run could not do belongs beside what it could.
        *([""] if report["failures"] else []),
        *(f"- {failure}" for failure in report["failures"]),
    ]
    return "\n".join(lines)


def sharded_row(finding: dict[str, Any]) -> str:
    if "more" in finding:
        more = [
            f"{name}: {its['objects']:,} and {its['bytes'] / 2**20:.1f} MiB" for name, its in finding["more"].items()
        ]
        return f"| {finding['workload']} | | {'; '.join(more[1:])} | {more[0]} | | no growth: {finding['verdict']} |"
    if "seconds" in finding:
        times = [1e3 * finding["seconds"][name] for name in (finding["against"], OURS)]
    else:
        times = [median(finding["nanoseconds"][name]) / 1e6 for name in (finding["against"], OURS)]
    goal_of = goal({**finding, "unit": "x"})
    cells = [finding["workload"], finding["against"], *(number(ms) for ms in times)]
    return f"| {' | '.join(cells)} | {measured({'measured': finding['ratio'], 'unit': 'x'})} | {goal_of} |"


def sharded_figures(path: Path | None) -> str:
    """The table of docs/distributed.md; of a ratio with "at most", ours is above the line."""
    if path is None:
        return "Not measured on this version."
    report = json.loads(path.read_text())
    machine = report["machine"]
    lines = [
        "| two processes of one thread | against | theirs, ms | ours, ms | measured (90 % interval) | goal |",
        "|---|---|---|---|---|---|",
        *map(sharded_row, report["findings"]),
        "",
        f"{machine['cpu']}, torch {machine['torch']}, {machine['date'][:10]}; "
        f"raw rounds in `benchmarks/results/{path.name}`.",
    ]
    for finding in report["findings"]:
        if REDUCES in finding.get("nanoseconds", ()):
            names = (REDUCES, UNCLIPPED, BOTH, OURS)
            alone, without, both, whole = (number(median(finding["nanoseconds"][name]) / 1e6) for name in names)
            lines[-1] += (
                f" In the rounds of the clipped step ({whole} ms) an all-reduce of two numbers took {alone} ms by "
                f"itself, a step without a norm {without} ms, and the two one after the other {both} ms."
            )
    return "\n".join(lines)


def put(text: str, mark: str, content: str) -> str:
    """``text`` with ``content`` between the marks of that name."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the text has no {begin} ... {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> None:
    page, readme, shards = ROOT / "benchmarks" / "README.md", ROOT / "README.md", ROOT / "docs" / "distributed.md"
    text = put(page.read_text(), CPU, figures(newest()))
    text = put(text, STORAGES, storages(newest_narrow()))
    page.write_text(put(text, GPU, gpu_figures(newest_gpu())))
    readme.write_text(put(readme.read_text(), SPEED, speed(newest(), newest_narrow(), newest_sharded())))
    shards.write_text(put(shards.read_text(), OF_SHARDS, sharded_figures(newest_sharded())))


if __name__ == "__main__":
    main()
