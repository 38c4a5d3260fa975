#!/usr/bin/env bash
# A float becomes another float8_e8m0 in CUDA's headers than in torch, jax and ml_dtypes: twice as large for most numbers.
#
# Versions: cuda-runtime 13.0.96's cuda_fp8.h (on the host; needs a C++ compiler), torch 2.13.0, ml_dtypes 0.6.0, jax 0.10.2 (CPU). 2026-11-30.
# Guess: a conversion without a rounding mode gives the nearest value, as it does for e4m3 and e5m2 in all four. And as e8m0 is the format of
#   scales, a scale of amax / 448 that is cast to it brings a block into what e4m3 can hold, in torch and jax as in CUDA.
# Behaviour: __nv_fp8_e8m0(x) rounds up to the next power of two and saturates, as the header's comments say; to nearest it cannot round. torch,
#   jax and ml_dtypes round to nearest, so a scale is too small by up to a third, and the largest element of 67 % of blocks is beyond 464,
#   where e4m3 ends. There torch cuts it off at 448, and jax writes NaN. 0, which e8m0 has not, is 2^-127 in CUDA and torch and NaN in the
#   others; a negative number loses its sign in the first two; of 3e38 CUDA makes 2^127, the others NaN. Whoever ports a kernel's
#   quantization of MX blocks (states, gradients) cast by cast, or checks one by the other, has scales apart by a factor of two. A
#   power of two that was rounded up by hand is the same in all.
# Output (what becomes of a number; then 4,096 blocks of 32 normal numbers, scaled by e8m0(amax / 448)):
#   of          1         1.3       1.5       1.6       3         -1.3      0         1.2e-38   3e+38     inf
#   CUDA        1         2         2         2         4         2         5.88e-39  2.35e-38  1.7e+38   1.7e+38
#   torch       1         1         2         2         4         1         5.88e-39  1.18e-38  nan       nan
#   ml_dtypes   1         1         2         2         4         nan       nan       1.18e-38  nan       nan
#   jax         1         1         2         2         4         nan       nan       1.18e-38  nan       nan
#   blocks scaled by CUDA's    beyond 464: 0.000   with NaN in e4m3, torch: 0.000   jax: 0.000
#   blocks scaled by torch's   beyond 464: 0.671   with NaN in e4m3, torch: 0.000   jax: 0.671
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0
"$dir/venv/bin/pip" install --quiet --no-deps nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85

cat > "$dir/scales.cpp" <<'CPP'
#include <cuda_fp8.h>

#include <cstdio>

int main() {
  for (float number; std::fread(&number, sizeof number, 1, stdin) == 1;) {
    const __nv_fp8_e8m0 scale(number);
    std::fwrite(&scale.__x, 1, 1, stdout);
  }
}
CPP
headers=$(echo "$dir"/venv/lib/python3*/site-packages/nvidia/cu13/include)
c++ -std=c++17 -O1 -I"$headers" -I"$headers/cccl" "$dir/scales.cpp" -o "$dir/scales"

JAX_PLATFORMS=cpu "$dir/venv/bin/python" -W ignore - "$dir/scales" <<'PY'
import subprocess
import sys

import jax
import jax.numpy
import ml_dtypes
import numpy
import torch

E8M0 = ml_dtypes.float8_e8m0fnu


def cuda(numbers):
    done = subprocess.run([sys.argv[1]], input=numbers.tobytes(), check=True, capture_output=True)
    return numpy.frombuffer(done.stdout, E8M0).reshape(numbers.shape).astype("float32")


def of_torch(numbers):
    return torch.from_numpy(numbers).to(torch.float8_e8m0fnu).float().numpy()


def of_ml_dtypes(numbers):
    return numbers.astype(E8M0).astype("float32")


def of_jax(numbers):
    return numpy.array(jax.jit(lambda array: array.astype(jax.numpy.float8_e8m0fnu))(numbers)).astype("float32")


numbers = numpy.array([1, 1.3, 1.5, 1.6, 3, -1.3, 0, 1.2e-38, 3e38, numpy.inf], "float32")
print(f"{'of':<11}", *(f"{number:<9.3g}" for number in numbers))
casts = {"CUDA": cuda, "torch": of_torch, "ml_dtypes": of_ml_dtypes, "jax": of_jax}
found = {name: cast(numbers) for name, cast in casts.items()}
for name, values in found.items():
    print(f"{name:<11}", *(f"{value:<9.3g}" for value in values))
nan, low, top = numpy.nan, 2.0**-127, 2.0**127
nearest = [1, 1, 2, 2, 4]
same = (
    numpy.array_equal(found["CUDA"], [1, 2, 2, 2, 4, 2, low, 4 * low, top, top])
    and numpy.array_equal(found["torch"], [*nearest, 1, low, 2 * low, nan, nan], equal_nan=True)
    and numpy.array_equal(found["ml_dtypes"], [*nearest, nan, nan, 2 * low, nan, nan], equal_nan=True)
    and numpy.array_equal(found["jax"], found["ml_dtypes"], equal_nan=True)
)

blocks = numpy.random.default_rng(0).standard_normal((4096, 32)).astype("float32")
largest = abs(blocks).max(1, keepdims=True)
for name, cast, share in (("CUDA's ", cuda, 0.0), ("torch's", of_torch, 0.67)):
    scaled = blocks / cast(largest / 448)
    beyond = (abs(scaled).max(1) > 464).mean()
    by_torch = torch.from_numpy(scaled).to(torch.float8_e4m3fn).float().isnan().any(1).double().mean().item()
    in_jax = numpy.array(jax.jit(lambda array: array.astype(jax.numpy.float8_e4m3fn))(scaled)).astype("float32")
    by_jax = numpy.isnan(in_jax).any(1).mean()
    print(f"blocks scaled by {name}   beyond 464: {beyond:.3f}   with NaN in e4m3, torch: {by_torch:.3f}   jax: {by_jax:.3f}")
    same &= bool(abs(beyond - share) < 0.01 and by_torch == 0 and by_jax == beyond)
if not same:
    sys.exit("the behaviour has changed")
PY
