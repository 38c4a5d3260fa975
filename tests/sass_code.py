"""Instructions of CUDA kernels (SASS) as NVIDIA's disassembler prints them: what they access, and which are loops."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from dataclasses import dataclass, replace

# What accesses of 16 or 32 bytes to global memory do, how the caches treat them, and the bytes. A param stays for the
# next forward pass (.cg in the source), everything else is touched once a step (.cs); rows of the step's table are read
# plainly.
Access = tuple[str, str, int]
POLICIES = {"STRONG.GPU": "kept", "EF": "streamed"}


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def access(self) -> Access | None:
        """("load" or "store", "kept", "streamed" or "plain", bytes) for a wide access to global memory."""
        name, _, modifiers = self.opcode.partition(".")
        bits = {"128", "256"} & {*modifiers.split(".")}
        if name not in ("LDG", "STG") or not bits:
            return None
        policies = (policy for written, policy in POLICIES.items() if re.search(rf"\b{written}\b", modifiers))
        return "load" if name == "LDG" else "store", next(policies, "plain"), int(bits.pop()) // 8

    @property
    def registers(self) -> list[int]:
        return [int(number) for number in re.findall(r"\bR(\d+)", self.operands)]


INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]+)\*/\s+(?:@(!?\w+) +)?([\w.]+)\s*(.*?)\s*;")


def parse_code(text: str) -> dict[tuple[str, str], list[Instruction]]:
    found: dict[tuple[str, str], list[Instruction]] = {}
    arch = ""
    code: list[Instruction] = []
    for line in text.splitlines():
        if instruction := INSTRUCTION.match(line):
            address, guard, opcode, operands = instruction.groups(default="")
            code.append(Instruction(int(address, 16), guard, opcode, operands))
        elif header := re.match(r"arch = (\w+)", line):
            arch = header[1]
        elif function := re.match(r"\s+Function : (\S+)", line):
            code = found[arch, function[1]] = []
    return {key: with_jumps(code) for key, code in found.items()}


def before_stores(loop: list[Instruction]) -> list[Instruction]:
    """From its first vector load to the next store; a loop may be entered between the two."""
    load = next((at for at, i in enumerate(loop) if i.access and i.access[0] == "load"), 0)
    loop = loop[load:] + loop[:load]
    first = next((at for at, i in enumerate(loop) if i.access and i.access[0] == "store"), len(loop))
    return loop[:first]


def ways_on(code: list[Instruction]) -> list[list[int]]:
    """For each instruction, which may come next, by index; what is called comes back."""
    at = {instruction.address: index for index, instruction in enumerate(code)}
    ways = []
    for index, instruction in enumerate(code):
        name = instruction.opcode.partition(".")[0]
        goes_on = bool(instruction.guard) or name not in ("BRA", "BRX", "JMP", "EXIT", "RET", "KILL")
        aims = []
        if name in ("BRA", "JMP"):
            *conditions, aim = instruction.operands.split(",")
            goes_on = goes_on or bool(conditions)
            aims = [at[int(aim, 16)]]
        ways.append(aims + [index + 1] * (goes_on and index + 1 < len(code)))
    return ways


def with_jumps(code: list[Instruction]) -> list[Instruction]:
    """The code with its branches named so: of sm_80, ptxas writes many that leave a loop as `@P0 CALL.REL.NOINC`.

    What such a one goes to comes to the kernel's end, where a function comes to its return.
    """
    at = {instruction.address: index for index, instruction in enumerate(code)}
    ways = ways_on(code)

    @functools.cache
    def returns(first: int) -> bool:
        seen, reached = {first}, [first]
        while reached:
            if code[reached[-1]].opcode.startswith("RET"):
                return True
            new = {index for index in ways[reached.pop()] if index not in seen}
            seen |= new
            reached += new
        return False

    def is_jump(i: Instruction) -> bool:
        aim = re.fullmatch(r"CALL\.REL\S* 0x(\w+)", f"{i.opcode} {i.operands}")
        return aim is not None and not returns(at[int(aim[1], 16)])

    return [replace(i, opcode="BRA") if is_jump(i) else i for i in code]


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Natural loops: what can reach a backward branch without passing through the instruction that it branches to."""
    before: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, list[int]] = defaultdict(list)
    for index, onward in enumerate(ways_on(code)):
        for head in onward:
            before[head].append(index)
            if head <= index:
                ends[head].append(index)
    found = []
    for head, tails in ends.items():
        body, reached = {head}, tails
        while reached:
            new = {index for index in reached if index not in body}
            body |= new
            reached = [index for member in new for index in before[member]]
        if 0 in body and head != 0:
            continue  # can be entered beside its head: code that was moved out of the way and branches back
        members = sorted(body)
        first = members.index(head)
        found.append([code[index] for index in members[first:] + members[:first]])
    return found
