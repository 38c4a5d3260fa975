"""The kernels' machine code keeps to what the kernels promise: wide accesses, no spills, no doubles in float's update.

Needs a build with CUDA, as `make build` makes it, and NVIDIA's disassembler (the `sass` extra), but no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sass
import sass_paths
from sass import SIZES, VECTOR_BYTES, Kernel
from sass_code import Access, before_stores

from fusedopt import _toolchain

ROOT = Path(__file__).parent.parent

# What the kernels are meant to be, in the test's own words: a change of theirs is a change here.
FLOAT_MIXES = [("float", "float", "float"), ("bf16", "bf16", "bf16"), ("bf16", "bf16", "float"), ("f16", "f16", "f16")]
DOUBLE_MIXES = [("double", "double", "double")]
UPDATE_THREADS = 256
BOUNDS = {"patch_table": (1024, 1), "advance": (1024, 1), "norm_squares": (256, 2)}
ANY_BOUNDS = (256, 2)
# Tiles that go element by element are there, of a lane eight numbers of each operand; with four states some more
# numbers find no register.
ANY_STACK = {("2", "float"): 184, ("4", "float"): 376, ("4", "double"): 528}
# With the 64 registers that leave room for four blocks these rules in one storage are some short. With 80 nothing would
# be on the stack, but three blocks have 48 KiB of 16-bit loads under way, and four 64. So many bytes of what is the
# same for all tiles are there. A loop reads of it once in a round, for eight elements of a lane, and writes nothing.
SPILLING = {
    "sm_80": {("Adadelta", "bf16"): 8, ("Adadelta", "f16"): 8, ("RMSprop", "bf16"): 16, ("RMSprop", "f16"): 16},
    "sm_90": {("Adam", "bf16"): 8, ("Adam", "f16"): 16},
    "sm_120": {("RMSprop", "float"): 8},
}
# Preparing scalars and adding squares is double's work, and a path for any mix of storages meets double storage.
# Everything else that does not update doubles has none: a data-center GPU does two doubles in the time of four floats,
# others of 128.
MAY_COMPUTE_IN_DOUBLE = ("advance", "update_any", "norm_squares")
GATED = (*BOUNDS, "update_any", "update")
# Whose roots and quotients one branch looks at (csrc/cuda/guarded.cuh), and who of them need more registers.
GUARDED = {"Adadelta", "Adagrad", "Adam", "AdamWScheduleFree", "Adamax", "Adan", "AdEMAMix", "LAMB", "LaProp"}
GUARDED |= {"MARS", "NAdam", "NAdamW", "Prodigy", "RAdam", "RAdamScheduleFree", "RMSprop", "SparseAdam", "StableAdamW"}
CROWDED = {"NAdam"}
# Its param is where it writes: the old value is never read.
WRITES_ONLY = "MuonMomentum"

REGISTERS_OF_SM = 65536
FIRST_WIDE = 100  # the first architecture that has accesses of 32 bytes
DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX|MMA)\b|MUFU\.\w*64H|.*\bF64\b")


# The gates: each yields what is wrong in sentences.


def registers_allowed(threads: int, blocks: int) -> int:
    """What __launch_bounds__ leaves a thread; registers are given out in eights, and an instruction can name 255."""
    return min(REGISTERS_OF_SM // (threads * blocks) // 8 * 8, 255)


def faults_of_registers(kernel: Kernel, threads: int, blocks: int) -> Iterator[str]:
    allowed = registers_allowed(threads, blocks)
    if kernel.usage.registers > allowed:
        yield f"{kernel}: {kernel.usage.registers} registers, {allowed} allowed with {blocks} blocks of {threads}"


def faults_of_memory(kernel: Kernel) -> Iterator[str]:
    """Spilled registers, and arrays that could not be registers."""
    if kernel.kind == "advance":
        return  # frexp(), of which a thread makes one or two calls a step, gives its exponent through memory
    if kernel.kind == "update_any":
        *_, states, computes_in = kernel.arguments
        if kernel.usage.stack <= ANY_STACK[states, computes_in] and not kernel.usage.local:
            return
    stack = 0
    if kernel.kind == "update":
        rule, _, _, *mix, _ = kernel.arguments
        stack = SPILLING.get(kernel.arch, {}).get((rule, mix[0]), 0) if len({*mix}) == 1 else 0
    if kernel.usage.stack > stack or kernel.usage.local:
        allowed = stack or "none"
        yield f"{kernel}: {kernel.usage.stack} bytes of stack and {kernel.usage.local} of local memory, not {allowed}"
    # How long a round is test_updates_move_vectors sees to.
    for code, reads in [(loop, 1) for loop in kernel.vector_loops] if stack else [(kernel.code, 0)]:
        spills = Counter(i.opcode for i in code if re.match(r"(LDL|STL)\b", i.opcode))
        if spills.total() > reads or any(opcode.startswith("STL") for opcode in spills):
            yield f"{kernel}: local memory is accessed, expected {reads} times: {dict(spills)}"


def faults_of_doubles(kernel: Kernel) -> Iterator[str]:
    doubles = Counter(i.opcode for i in kernel.code if DOUBLE.match(i.opcode))
    if doubles:
        yield f"{kernel}: computes in double, expected never: {dict(doubles)}"


def faults_of_traffic(kernel: Kernel, *ways: Counter[Access]) -> Iterator[str]:
    """Where vector loops access memory otherwise than in one of `ways` each, the wide accesses of one of its rounds.

    nvcc may write several rounds into one iteration, and then raise loads above stores whose addresses it can compare.
    It cannot compare the gradient's with anything, so the loads before the first store tell the length of a round.
    """
    taken = []
    for loop in kernel.vector_loops:
        found = Counter(i.access for i in loop if i.access)
        fitting = [(way, found.total() // way.total()) for way in ways if found.keys() == way.keys()]
        fitting = [(way, n) for way, n in fitting if found == Counter({access: n * way[access] for access in way})]
        if not fitting:
            yield f"{kernel}: wide accesses {dict(found)}, expected a multiple of one of {[dict(way) for way in ways]}"
            continue
        ((traffic, rounds),) = fitting
        taken.append(traffic)
        loads = Counter({access: n for access, n in traffic.items() if access[0] == "load"})
        ahead = Counter(i.access for i in before_stores(loop) if i.access)
        if not loads <= ahead or ahead.total() >= 2 * loads.total():
            yield f"{kernel}: wide loads before the first store {dict(ahead)}, expected {dict(loads)}"
        narrow = Counter(i.opcode for i in loop if re.match(r"(LD|ST)G?\b", i.opcode) and not i.access)
        # The gradient's multiplier may be read anew in each round: for all nvcc knows a store has changed it.
        if narrow.total() > rounds or any(opcode.startswith("ST") for opcode in narrow):
            yield f"{kernel}: narrow accesses in a vector loop of {rounds} rounds: {dict(narrow)}"
    for way in ways:
        if way not in taken:
            yield f"{kernel}: no loop with wide accesses {dict(way)}"


def differences(built: sass.Table, committed: sass.Table) -> Iterator[str]:
    """Where a build of some architectures differs from the committed table."""
    archs = {arch for row in built.values() for arch in row} & {arch for row in committed.values() for arch in row}
    for name in sorted({*built, *committed}):
        for arch in sorted(archs, key=sass.number_of):
            old, new = (table.get(name, {}).get(arch, "none") for table in (committed, built))
            if old != new:
                yield f"{name} on {arch}: committed {old}, built {new}"


# What is expected of each kernel.

COUNT_STATES = """
#include <cstdio>
#include <typeinfo>

template <class Rule>
void print() {
  constexpr int states = sizeof(Rule::state_names) / sizeof(Rule::state_names[0]);
  for (int variant = 0; variant < Rule::variants; ++variant) {
    int kept = 0;
    for (int state = 0; state < states; ++state) kept += Rule::keeps(variant, state);
    std::printf("%s %d %d\\n", typeid(Rule).name(), variant, kept);
  }
}
"""


@pytest.fixture(scope="module")
def kept_states(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], int]:
    """By rule and variant, from the rules' headers."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if not compiler:
        pytest.skip("needs a C++ compiler")
    program = tmp_path_factory.mktemp("rules") / "count_states"
    command = [compiler, "-std=c++17", f"-I{ROOT}", "-x", "c++", "-", "-o", str(program)]
    rules = _toolchain.Tree(ROOT).rules()
    headers = "".join(f'#include "csrc/rules/{rule.header}"\n' for rule in rules)
    calls = "".join(f"print<fusedopt::{rule.struct}>();" for rule in rules)
    text = f"{headers}{COUNT_STATES}int main() {{ {calls} }}"
    subprocess.run(command, input=text, text=True, check=True)
    lines = subprocess.check_output([program], text=True).splitlines()
    rows = [line.split() for line in lines]
    return {(sass.short(f"_Z{rule}"), variant): int(kept) for rule, variant, kept in rows}


# The one that is looked at without --all, if it was built: to read the code of one takes half a minute, and nvcc makes
# the same of a source for all of them but for a register here and there. Registers, stack and local memory are looked
# at of every kernel, and the code of those that are no rule's and of these rules': one of each kind, as in tiers.py.
ARCH = "sm_90"
READ = {"SGD", "Adam", "Lion", "LAMB"}


def is_read(name: str) -> bool:
    kind, _, arguments = name.partition("<")
    return arguments.split(",")[0] in READ if kind == "update" else kind in GATED


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> list[Kernel]:
    try:
        found = [] if request.config.getoption("--all") else sass.dump_some(sass.built(), ARCH, is_read)
        return found or sass.dump(sass.built())
    except sass.Missing as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def kernels(built: list[Kernel]) -> list[Kernel]:
    """Those of the update and of norms. What other sums, factors and L-BFGS's history take is in the table alone."""
    return [kernel for kernel in built if kernel.kind in GATED]


class Expected:
    """What an update kernel moves, by the formulas of Tile and Wide in csrc/cuda/kernels.cuh."""

    def __init__(self, kernel: Kernel, kept_states: dict[tuple[str, str], int]) -> None:
        rule, variant, _, *mix, computes_in = kernel.arguments
        param, grad, state = (SIZES[storage] for storage in mix)
        kept = kept_states[rule, variant]
        # 16 bytes of the narrowest operand, whether or not the variant keeps the states.
        vector = VECTOR_BYTES // min(param, grad, state)
        unroll = 2 if vector <= 4 and vector * (param + grad + kept * state) <= 64 else 1
        narrow = kept < 2 or (unroll * vector * (param + grad + kept * state) <= 64 and rule not in CROWDED)
        four = computes_in == "float" and rule in GUARDED and narrow
        self.blocks = 2 if computes_in == "double" or kept > (2 if vector > 4 else 3) else 4 if four else 3
        operands = [("kept", param), ("streamed", grad), *[("streamed", state)] * kept]
        # Two tiles of float32 are one where there are accesses of 32 bytes, if the row is aligned to them; what is
        # beside operands of half its size has as much of it side by side anyway.
        twice, beside = unroll == 2 and computes_in == "float", state == 2 * param
        self.ways = [self._way([(which, vector * size, unroll) for which, size in operands], VECTOR_BYTES)]
        if sass.number_of(kernel.arch) >= FIRST_WIDE and (twice or beside):
            wide = self._way([(which, vector * size * (1 + twice), 1) for which, size in operands], 2 * VECTOR_BYTES)
            self.ways = [*self.ways * twice, wide]

    @staticmethod
    def _way(operands: list[tuple[str, int, int]], widest: int) -> Counter[Access]:
        """Of operands, their policies, the bytes that a lane has side by side, and how often."""
        way: Counter[Access] = Counter()
        for at, (policy, size, times) in enumerate(operands):
            each = min(size, widest)
            way["load", policy, each] += times * size // each
            if at != 1:  # the gradient's
                way["store", policy, each] += times * size // each
        return way


def updates(kernels: list[Kernel]) -> list[Kernel]:
    """Those whose code was read."""
    of_rules = [kernel for kernel in kernels if kernel.kind == "update" and kernel.code]
    return [kernel for kernel in of_rules if kernel.arguments[0] != WRITES_ONLY]


def none(faults: Iterator[str]) -> None:
    found = list(faults)
    assert not found, "\n".join(["", *found])


def test_every_rule_has_its_kernels(kernels: list[Kernel], kept_states: dict[tuple[str, str], int]) -> None:
    expected = {f"update_any<Linked, {kind}>" for kind in ("2, float", "4, float", "4, double")}
    for rule, variant in kept_states:
        for computes_in, mixes in (("float", FLOAT_MIXES), ("double", DOUBLE_MIXES)):
            expected |= {f"update<{rule}, {variant}, Mix<{', '.join(mix)}>, {computes_in}>" for mix in mixes}
    for arch in {kernel.arch for kernel in kernels}:
        names = [kernel.name for kernel in kernels if kernel.arch == arch]
        assert {name for name in names if name.startswith("update")} == expected, arch
        assert len(names) == len(set(names)), arch


def test_no_kernel_uses_local_memory(kernels: list[Kernel]) -> None:
    none(fault for kernel in kernels for fault in faults_of_memory(kernel))


def test_registers_are_within_launch_bounds(kernels: list[Kernel], kept_states: dict[tuple[str, str], int]) -> None:
    told = sass.launch_bounds(sass.built())
    for kernel in kernels:
        bounds = ANY_BOUNDS if kernel.kind == "update_any" else BOUNDS.get(kernel.kind)
        bounds = bounds or (UPDATE_THREADS, Expected(kernel, kept_states).blocks)
        assert told.get(kernel.name, bounds) == bounds, f"{kernel.name} has other launch bounds"
        none(faults_of_registers(kernel, *bounds))


def test_updates_move_vectors(kernels: list[Kernel], kept_states: dict[tuple[str, str], int]) -> None:
    none(
        fault for kernel in updates(kernels) for fault in faults_of_traffic(kernel, *Expected(kernel, kept_states).ways)
    )


@pytest.mark.parametrize("arch", ["sm_100", "sm_120"])
def test_blackwells_move_32_bytes_at_a_time(arch: str, kept_states: dict[tuple[str, str], int]) -> None:
    """Adam's param, gradient and states in float32; of bfloat16 beside float32 the states."""
    counted = {
        "float, float, float": (4, 3),
        "bf16, bf16, float": (2, 2),
        "bf16, bf16, bf16": (0, 0),
    }
    for mix, (loads, stores) in counted.items():
        try:
            found = sass.dump(sass.built(), arch, f"update<Adam, 0, Mix<{mix}>, float>")
        except sass.Missing as why:
            pytest.skip(str(why))
        if not found:
            pytest.skip(f"not built for {arch}")
        (kernel,) = found
        none(faults_of_traffic(kernel, *Expected(kernel, kept_states).ways))
        of_32 = Counter(i.access[0] for i in kernel.vector_loops[0] if i.access and i.access[2] == 32)
        assert (of_32["load"], of_32["store"]) == (loads, stores), kernel


def test_guarded_updates_call_nothing(kernels: list[Kernel]) -> None:
    """Neither a root nor a quotient looks at its operands to take a slow way."""
    for kernel in updates(kernels):
        if kernel.arguments[0] in GUARDED and "double" not in kernel.arguments:
            slow = {i.opcode for loop in kernel.vector_loops for i in loop if re.match(r"(CALL|FCHK)\b", i.opcode)}
            assert not slow, f"{kernel}: {slow}"


def test_adams_dense_rows_are_at_the_memorys_speed(kernels: list[Kernel]) -> None:
    """Instructions per element of a Hopper, and KiB that an SM has under way."""
    asked = {"float": (33, 96), "bf16": (36, 64)}
    for kernel in kernels:
        for storage, (most, least) in asked.items():
            if kernel.arch == ARCH and kernel.name == f"update<Adam, 0, Mix<{', '.join([storage] * 3)}>, float>":
                assert (kernel.instructions_per_element() or 0) <= most
                assert (kernel.bytes_in_flight() or 0) >= least << 10


def test_sixteen_bits_are_converted_by_one_instruction(
    kernels: list[Kernel], kept_states: dict[tuple[str, str], int]
) -> None:
    """Two numbers to a word when they are stored; of float16 each when it is loaded. csrc/codec.h has no other way."""
    packing = {"bf16": r"F2FP\.BF16\b", "f16": r"F2FP\.(F16\.F32\.)?PACK"}
    for kernel in updates(kernels):
        rule, variant, _, param, _, state, _ = kernel.arguments
        if param not in packing:
            continue
        loop = kernel.vector_loops[0]
        rounds = sum(i.access is not None and i.access[:2] == ("store", "kept") for i in loop)
        narrow = kept_states[rule, variant] * (state == param)
        packed = sum(re.match(packing[param], i.opcode) is not None for i in loop)
        assert packed == rounds * (1 + narrow) * VECTOR_BYTES // 4, kernel
        if param == "f16":
            widened = sum(i.opcode.startswith("HADD2.F32") for i in loop)
            assert widened == rounds * (2 + narrow) * VECTOR_BYTES // 2, kernel


def test_norms_load_sixteen_bytes_at_a_time(kernels: list[Kernel]) -> None:
    """A lane's 32 elements of an aligned chunk, in each of float64, float32 and three storages of 16 bits."""
    for kernel in kernels:
        if kernel.kind == "norm_squares" and "DenseGrads" in kernel.arguments:
            loads = sum(i.access == ("load", "plain", VECTOR_BYTES) for i in kernel.code)
            assert loads == sum(32 * size // VECTOR_BYTES for size in (8, 4, 2, 2, 2)), kernel


def test_floats_are_not_updated_in_double(kernels: list[Kernel]) -> None:
    none(
        fault
        for kernel in kernels
        if kernel.kind not in MAY_COMPUTE_IN_DOUBLE and "double" not in kernel.arguments
        for fault in faults_of_doubles(kernel)
    )


def test_registers_and_instructions_are_those_committed(request: pytest.FixtureRequest, built: list[Kernel]) -> None:
    committed, compiled_by = sass.read(sass.TABLE.read_text())
    if sass.compiler() != compiled_by:
        pytest.skip(f"the table was made with nvcc {compiled_by}, this build with {sass.compiler()}")
    built = [kernel for kernel in built if kernel.code]
    names = {kernel.name for kernel in built}
    if not request.config.getoption("--all"):
        committed = {name: row for name, row in committed.items() if name in names}
    found = list(differences(sass.table_of(built), committed))
    renewal = "if all of that is meant: python tests/sass.py --write"
    assert not found, "\n".join(["", "registers and instructions per element:", *found, renewal])


# Instructions per element that rows with options may take.
MOST_PER_ELEMENT = {name: 100 if "8 bits" in name else 80 for name in sass_paths.ROWS}


@pytest.mark.parametrize("name", sass_paths.ROWS)
def test_rows_with_options_stay_in_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("FUSEDOPT_CUDA", "1")  # conftest.py has other tests compile without
    try:
        kernel = sass_paths.compiled(sass_paths.ROWS[name], tmp_path)
    except sass.Missing as why:
        pytest.skip(str(why))
    none(faults_of_memory(kernel))
    assert sass_paths.per_element(kernel) <= MOST_PER_ELEMENT[name]
    row = f"{name:28} {kernel.usage.registers:>3} {sass_paths.per_element(kernel):>6.1f}\n"
    assert row in sass_paths.TABLE.read_text(), "if that is meant: python tests/sass_paths.py --write"
