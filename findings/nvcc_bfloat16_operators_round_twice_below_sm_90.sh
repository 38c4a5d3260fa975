#!/usr/bin/env bash
# a * b + c of __nv_bfloat16 rounds once on sm_90 and twice on sm_80 to sm_89, and twice on sm_90 too if its code came from compute_80.
#
# Versions: nvcc 13.0.88 with the headers of cuda-runtime 13.0.96, nvdisasm 13.5.37 (needs a host compiler). Only machine code is read.
# Guess: + and * of bfloat16 are like those of float16 and float32: by default nvcc fuses them, which rounds once, on every chip that has a
#   bfloat16 fma, and those of sm_80 have it. So a kernel gives the same bits on an A100 and an H100, and in a wheel's sm_80 image as in
#   the code that the driver makes of its PTX.
# Behaviour: sm_80 has the fma alone. So for less than sm_90 the header writes a product as fma(a, b, -0) and a sum as fma(a, 1, b), and
#   the compiler fuses no fma with another: two instructions, two roundings. From sm_90 on it writes mul and add, which are
#   fused. It is the PTX's architecture that counts: compute_80's on sm_90 becomes a product and a sum there, in which the -0 and the 1
#   are seen through and which still are not fused. float16 is fused everywhere. With -fmad=false all round twice.
# Output (the instructions of a * b + c, without their suffixes, and how often it rounds):
#   compute_80 for sm_80                 float16  HFMA2         1   bfloat16 HFMA2 HFMA2   2
#   compute_89 for sm_89                 float16  HFMA2         1   bfloat16 HFMA2 HFMA2   2
#   compute_90 for sm_90                 float16  HFMA2         1   bfloat16 HFMA2         1
#   compute_80 for sm_90                 float16  HFMA2         1   bfloat16 HMUL2 HADD2   2
#   compute_120 for sm_120               float16  HFMA2         1   bfloat16 HFMA2         1
#   compute_80 for sm_120                float16  HFMA2         1   bfloat16 HMUL2 HADD2   2
#   compute_90 for sm_90, -fmad=false    float16  HMUL2 HADD2   2   bfloat16 HMUL2 HADD2   2
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-deps nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvdisasm==13.5.37

"$dir/venv/bin/python" - "$dir" <<'PY'
import re
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])
(nvcc,) = folder.glob("venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc")
(nvdisasm,) = folder.glob("venv/lib/python3*/site-packages/nvidia/cu13/bin/nvdisasm")
source, image = folder / "fused.cu", folder / "fused.cubin"
source.write_text("""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
template <class T> __device__ void run(T* x) { x[0] = x[1] * x[2] + x[3]; }
extern "C" __global__ void of_float16(__half* x) { run(x); }
extern "C" __global__ void of_bfloat16(__nv_bfloat16* x) { run(x); }
""")


def instructions(virtual, real, *options):
    code = f"-gencode=arch=compute_{virtual},code=sm_{real}"
    subprocess.run([nvcc, code, *options, "-cubin", source, "-o", image], check=True)
    listing = subprocess.run([nvdisasm, image], check=True, capture_output=True, text=True).stdout
    of = {}
    for part in re.split(r"\.section\s+\.text\.", listing)[1:]:
        # An HFMA2 of RZ and RZ moves a constant into a register.
        of[part.split(",")[0]] = re.findall(r"\b(HFMA2|HMUL2|HADD2)[\w.]* +R\d+, (?!-?RZ, RZ)", part)
    return of["of_float16"], of["of_bfloat16"]


apart = ["HMUL2", "HADD2"]
changed = False
for virtual, real, options, expected in (
    (80, 80, [], ["HFMA2", "HFMA2"]),
    (89, 89, [], ["HFMA2", "HFMA2"]),
    (90, 90, [], ["HFMA2"]),
    (80, 90, [], apart),
    (120, 120, [], ["HFMA2"]),
    (80, 120, [], apart),
    (90, 90, ["-fmad=false"], apart),
):
    half, bfloat16 = instructions(virtual, real, *options)
    name = ", ".join([f"compute_{virtual} for sm_{real}", *options])
    print(f"{name:36} float16  {' '.join(half):13} {len(half)}   bfloat16 {' '.join(bfloat16):13} {len(bfloat16)}")
    changed |= half != (apart if options else ["HFMA2"]) or bfloat16 != expected
if changed:
    sys.exit("the behaviour has changed")
PY
