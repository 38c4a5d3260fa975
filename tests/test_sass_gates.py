"""The gates of test_sass.py themselves, on kernels with planted faults, and what the table says of kernels.

Needs nvcc and NVIDIA's disassembler (the `sass` extra), but no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
import sass
from sass import Kernel
from sass_code import Instruction, loops, parse_code
from test_sass import (
    differences,
    faults_of_doubles,
    faults_of_memory,
    faults_of_registers,
    faults_of_traffic,
    none,
    registers_allowed,
)

PLANTED = """
#include <cuda_runtime.h>

enum Fault { kNone, kNarrowLoad, kNarrowStore, kNoPolicy, kDouble, kOneByOne };

__device__ float4 mix(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Two vectors of two operands a round.
template <Fault fault>
__global__ void __launch_bounds__(256, 3) sweep(float4* p, const float4* g, int n) {
  for (int i = threadIdx.x; i < n; i += 512) {
    if (fault == kOneByOne) {
      __stcg(p + i, mix(__ldcg(p + i), __ldcs(g + i)));
      __stcg(p + i + 256, mix(__ldcg(p + i + 256), __ldcs(g + i + 256)));
      continue;
    }
    float4 a = __ldcg(p + i), b = __ldcg(p + i + 256);
    float4 c = fault == kNoPolicy ? g[i] : __ldcs(g + i), d = {};
    if (fault == kNarrowLoad)
      d.x = d.y = d.z = d.w = __ldcs(reinterpret_cast<const float*>(g + i + 256));
    else
      d = __ldcs(g + i + 256);
    if (fault == kDouble) c.x = c.x * 1.1;
    a = mix(a, c);
    b = mix(b, d);
    __stcg(p + i, a);
    if (fault == kNarrowStore)
      __stcg(reinterpret_cast<float*>(p + i + 256), b.x + b.y + b.z + b.w);
    else
      __stcg(p + i + 256, b);
  }
}

// Eighty values that live at once.
template <int threads, int blocks>
__global__ void __launch_bounds__(threads, blocks) hold(const float* in, float* out) {
  float held[80];
#pragma unroll
  for (int i = 0; i < 80; ++i) held[i] = in[i * threads + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 80; ++i) out[i * threads + threadIdx.x] = held[i] * held[(i + 41) % 80];
}

// An array whose index is known at run time only.
__global__ void look_up(const float* in, float* out, int n) {
  float array[64] = {};
  for (int i = 0; i < n; ++i) array[i * n % 64] += in[i];
  *out = array[n];
}

template __global__ void sweep<kNone>(float4*, const float4*, int);
template __global__ void sweep<kNarrowLoad>(float4*, const float4*, int);
template __global__ void sweep<kNarrowStore>(float4*, const float4*, int);
template __global__ void sweep<kNoPolicy>(float4*, const float4*, int);
template __global__ void sweep<kDouble>(float4*, const float4*, int);
template __global__ void sweep<kOneByOne>(float4*, const float4*, int);
template __global__ void hold<256, 1>(const float*, float*);
template __global__ void hold<1024, 2>(const float*, float*);
"""
TWO_VECTORS = Counter({("load", "kept", 16): 2, ("load", "streamed", 16): 2, ("store", "kept", 16): 2})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    """By name, the numbers of faults spelled out."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("nvcc not found")
    try:
        sass.tool("cuobjdump"), sass.tool("nvdisasm")
    except sass.Missing as why:
        pytest.skip(str(why))
    source = tmp_path_factory.mktemp("planted") / "planted.cu"
    source.write_text(PLANTED)
    binary = source.with_suffix(".fatbin")
    subprocess.run([nvcc, "-std=c++17", "-O3", "-arch=sm_80", "-fatbin", source, "-o", binary], check=True)
    faults = re.findall(r"\bk\w+", PLANTED.split("\n\n")[1])
    named = {}
    for kernel in sass.dump(binary):
        number = re.search(r"\(Fault\)(\d+)", kernel.name)
        named[faults[int(number[1])] if number else kernel.name] = kernel
    return named


def test_a_sound_kernel_passes(planted: dict[str, Kernel]) -> None:
    sound = planted["kNone"]
    none(faults_of_memory(sound))
    none(faults_of_doubles(sound))
    none(faults_of_traffic(sound, TWO_VECTORS))
    none(faults_of_registers(sound, 256, 3))


@pytest.mark.parametrize("fault", ["kNarrowLoad", "kNarrowStore", "kNoPolicy", "kOneByOne"])
def test_other_traffic_is_seen(planted: dict[str, Kernel], fault: str) -> None:
    assert list(faults_of_traffic(planted[fault], TWO_VECTORS))


@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_round_of_another_length_is_seen(planted: dict[str, Kernel], factor: float) -> None:
    other = Counter({access: int(n * factor) for access, n in TWO_VECTORS.items()})
    assert list(faults_of_traffic(planted["kNone"], other))


def test_what_an_sm_holds(planted: dict[str, Kernel]) -> None:
    """Warps as NVIDIA's occupancy calculator has them, by registers, by shared memory and by what there is of both."""
    kernel = planted["kNone"]
    for registers, warps in {32: 64, 40: 48, 42: 40, 72: 24, 80: 24, 81: 16, 255: 8}.items():
        usage = replace(kernel.usage, registers=registers)
        assert replace(kernel, usage=usage).warps() == warps, registers
    usage = replace(kernel.usage, registers=32, shared=40 << 10)
    assert [replace(kernel, arch=arch, usage=usage).warps() for arch in sass.MULTIPROCESSORS] == [32, 40, 40, 16]
    # Four loads of 16 bytes, by each lane of 64 warps.
    usage = replace(kernel.usage, registers=32)
    assert replace(kernel, usage=usage).bytes_in_flight() == 4 * 16 * 32 * 64


# A loop within a loop, left at 0x50 as ptxas for sm_80 has it; at 0x20 what is called is a function.
LEFT_BY_A_CALL = """
arch = sm_80
        Function : nested
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @P0  BRA 0x70 ;
        /*0020*/              @P1  CALL.REL.NOINC 0xb0 ;
        /*0030*/                   LDG.E.EF.128 R4, [R2.64] ;
        /*0040*/                   STG.E.EF.128 [R2.64], R4 ;
        /*0050*/              @P0  CALL.REL.NOINC 0x70 ;
        /*0060*/                   BRA 0x20 ;
        /*0070*/                   LD.E.U16 R4, [R2.64] ;
        /*0080*/              @P2  CALL.REL.NOINC 0xa0 ;
        /*0090*/                   BRA 0x10 ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   FMUL R4, R4, R4 ;
        /*00c0*/                   RET.REL.NODEC R2 0x0 ;
"""


def test_a_loop_that_is_left_by_a_call_is_within_another() -> None:
    code = parse_code(LEFT_BY_A_CALL)["sm_80", "nested"]
    inner, outer = sorted(([i.address for i in loop] for loop in loops(code)), key=len)
    assert inner == [0x20, 0x30, 0x40, 0x50, 0x60]
    assert outer == [0x10, *inner, 0x70, 0x80, 0x90]
    assert [i.address for i in code if i.opcode.startswith("CALL")] == [0x20]


def test_a_missing_loop_is_seen(planted: dict[str, Kernel]) -> None:
    assert list(faults_of_traffic(planted["hold<256, 1>"], TWO_VECTORS))


def test_a_double_is_seen(planted: dict[str, Kernel]) -> None:
    assert list(faults_of_doubles(planted["kDouble"]))


def test_a_spill_and_an_array_are_seen(planted: dict[str, Kernel]) -> None:
    none(faults_of_memory(planted["hold<256, 1>"]))
    for name in ("hold<1024, 2>", "look_up"):
        faults = list(faults_of_memory(planted[name]))
        assert any("LDL" in fault for fault in faults)
        assert any("bytes of stack" in fault for fault in faults)


def test_what_may_be_on_the_stack_is_bounded(planted: dict[str, Kernel]) -> None:
    def adam(kernel: Kernel, stack: int, storage: str = "bf16") -> Kernel:
        name = f"update<Adam, 0, Mix<{', '.join([storage] * 3)}>, float>"
        return replace(kernel, name=name, arch="sm_90", usage=replace(kernel.usage, stack=stack))

    sound = planted["kNone"]
    none(faults_of_memory(adam(sound, 8)))
    for kernel in (adam(sound, 16), adam(sound, 8, "float"), replace(adam(sound, 8), arch="sm_80")):
        assert list(faults_of_memory(kernel))
    loop = sound.vector_loops[0]
    reads, writes = (replace(loop[0], opcode=opcode, operands="R0, [R1]") for opcode in ("LDL", "STL"))

    def with_first(*others: Instruction) -> Kernel:
        """Others in the place of the loop's first instructions that access no memory."""
        plain = [i.address for i in loop if not i.access and i.opcode.partition(".")[0] != "BRA"]
        other = {address: replace(i, address=address) for address, i in zip(plain, others, strict=False)}
        return adam(replace(sound, code=[other.get(i.address, i) for i in sound.code]), 8)

    none(faults_of_memory(with_first(reads)))
    assert list(faults_of_memory(with_first(reads, reads)))
    assert list(faults_of_memory(with_first(writes)))


def test_registers_beyond_the_bounds_are_seen(planted: dict[str, Kernel]) -> None:
    assert [registers_allowed(256, blocks) for blocks in (1, 2, 3)] == [255, 128, 80]
    assert registers_allowed(1024, 1) == 64
    assert list(faults_of_registers(planted["hold<256, 1>"], 1024, 1))


def test_a_difference_from_the_table_is_seen(planted: dict[str, Kernel]) -> None:
    kernel = planted["hold<256, 1>"]
    table = sass.table_of([kernel])
    assert sass.read(sass.write(table, "V13.0.88")) == (table, "V13.0.88")
    none(differences(table, {name: {**row, "sm_90": "1 - - -"} for name, row in table.items()}))
    usage = replace(kernel.usage, registers=kernel.usage.registers + 1)
    (sentence,) = differences(sass.table_of([replace(kernel, usage=usage)]), table)
    assert re.fullmatch(r"hold<256, 1> on sm_80: committed \d+ \d+ - -, built \d+ \d+ - -", sentence)
    assert list(differences({"another": table[kernel.name]}, table)) == [
        f"another on sm_80: committed none, built {table[kernel.name]['sm_80']}",
        f"hold<256, 1> on sm_80: committed {table[kernel.name]['sm_80']}, built none",
    ]
