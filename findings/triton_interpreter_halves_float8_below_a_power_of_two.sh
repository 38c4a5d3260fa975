#!/usr/bin/env bash
# Triton's interpreter cuts float32 off to bfloat16, and to float8 it makes 1.0 of 1.96 and 384 of NaN; compiled code rounds to nearest.
#
# Versions: triton 3.9.0, torch 2.13.0. Interpreted on a CPU; of the compiled kernel only its PTX is read.
# Guess: TRITON_INTERPRET=1 gives a kernel's numbers without a GPU. Sums may be in another order, but a cast has one right result, the
#   nearest, halves to even, as compiled kernels and torch give: a kernel that computes in float32 and stores bfloat16 is right.
# Behaviour: the cast to bfloat16 drops the lower bits. Half of all numbers differ, all toward zero: what is added up in bfloat16 by
#   increments below its last place never moves. To float8 it rounds, but where rounding should carry into the exponent the carry is
#   lost: a number just below a power of two becomes half of it, 2.8 % (e4m3) and 4.7 % (e5m2) of normally distributed ones. An
#   e4m3 NaN is not known in either direction: from float32 it becomes 384, and read back it is 480. inf becomes 256.
# Output (share of 65,536 normal numbers that are not the nearest, the instruction of the compiled cast on sm_90, some of the casts):
#   bfloat16       0.501 cvt.rn.bf16.f32
#     of       1.96      3.9       7.8       500       nan       inf
#     triton   1.953     3.891     7.781     500       nan       inf
#     torch    1.961     3.906     7.812     500       nan       inf
#   float8_e4m3fn  0.028 cvt.rn.satfinite.e4m3x2.f32
#     of       1.96      3.9       7.8       500       nan       inf
#     triton   1         4         4         256       384       256
#     torch    2         4         8         448       nan       448
#   float8_e5m2    0.047 cvt.rn.satfinite.e5m2x2.f32
#     of       1.96      3.9       7.8       500       nan       inf
#     triton   1         4         4         256       nan       inf
#     torch    2         4         8         512       nan       inf
#   NaN to float8_e4m3fn and back: 384; torch's NaN in float8_e4m3fn, read: 480
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$dir/venv/bin/pip" install --quiet triton==3.9.0
export TRITON_CACHE_DIR="$dir/cache"

cat > "$dir/kernel.py" <<'PY'
import triton
import triton.language as tl


@triton.jit
def cast(source, target, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(target + at, tl.load(source + at).to(target.dtype.element_ty))
PY
cat > "$dir/compiled.py" <<'PY'
import re

import triton
from kernel import cast
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

for name in ("bf16", "fp8e4nv", "fp8e5"):
    signature = {"source": "*fp32", "target": "*" + name, "N": "constexpr"}
    made = triton.compile(ASTSource(fn=cast, signature=signature, constexprs={"N": 128}), target=GPUTarget("cuda", 90, 32))
    print(*sorted(set(re.findall(r"cvt\.r[\w.]+", made.asm["ptx"]))))
PY
cat > "$dir/interpreted.py" <<'PY'
import sys

import torch
from kernel import cast

compiled = sys.argv[1].split()
normal = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
some = torch.tensor([1.96, 3.9, 7.8, 500.0, float("nan"), float("inf"), 0.0, 0.0])
some[6:] = some[:2]


def by_triton(values, dtype):
    target = torch.empty(values.numel(), dtype=dtype)
    cast[(1,)](values, target, values.numel())
    return target


changed = False
for dtype, instruction, expected in (
    (torch.bfloat16, "cvt.rn.bf16.f32", (0.49, 0.51)),
    (torch.float8_e4m3fn, "cvt.rn.satfinite.e4m3x2.f32", (0.02, 0.04)),
    (torch.float8_e5m2, "cvt.rn.satfinite.e5m2x2.f32", (0.04, 0.06)),
):
    theirs = by_triton(normal, dtype).float()
    share = (theirs != normal.to(dtype).float()).float().mean().item()
    toward_zero = bool((theirs.abs() <= normal.abs()).all())
    shown = by_triton(some, dtype).float()[:6].tolist()
    right = some.to(dtype).float()[:6].tolist()
    now = compiled.pop(0)
    print(f"{str(dtype)[6:]:14} {share:.3f} {now}")
    print("  of      ", *(f"{value:<9.4g}" for value in some[:6].tolist()))
    print("  triton  ", *(f"{value:<9.4g}" for value in shown))
    print("  torch   ", *(f"{value:<9.4g}" for value in right))
    changed |= not expected[0] < share < expected[1] or now != instruction or toward_zero != (dtype == torch.bfloat16)
    if dtype != torch.bfloat16:
        changed |= shown[0] != 1.0 or right[0] != 2.0
back = by_triton(by_triton(some, torch.float8_e4m3fn), torch.float32)[4].item()
read = by_triton(torch.full((8,), float("nan")).to(torch.float8_e4m3fn), torch.float32)[0].item()
print(f"NaN to float8_e4m3fn and back: {back:g}; torch's NaN in float8_e4m3fn, read: {read:g}")
if changed or back != 384 or read != 480:
    sys.exit("the behaviour has changed")
PY
instructions=$("$dir/venv/bin/python" -W ignore "$dir/compiled.py")
TRITON_INTERPRET=1 "$dir/venv/bin/python" -W ignore "$dir/interpreted.py" "$instructions"
