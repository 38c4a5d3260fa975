"""Mutants of both engines; the CUDA engine's step on the emulator."""

from mutant import Mutant

MUTANTS = (
    Mutant(
        "csrc/cpu/engine.cpp",
        "element / grain * grain",
        "element",
        "threads meet within a block of codes, or within a chunk of a sum",
        "tests/test_bitwise.py tests/test_codec.py tests/test_parts.py",
    ),
    Mutant(
        "csrc/cpu/sweep.h",
        "elements(p + i, g + i, state, n - i, multiplier, c, store.at(i));",
        "elements(p + i, g + i, state, n - i - 1, multiplier, c, store.at(i));",
        "a tail loses its last element",
        "tests/test_parity.py -k sgd",
    ),
    Mutant(
        "csrc/codec.h",
        "bits + 0x7fffu + ((bits >> 16) & 1u)",
        "bits + 0x8000u",
        "ties of bfloat16 are rounded away from zero",
        "tests/test_dtypes.py tests/test_bitwise.py tests/test_extension.py",
    ),
    Mutant(
        "csrc/gram.h",
        "factor[i] = alpha[i] - yr / ys(i);",
        "factor[i] = alpha[i] + yr / ys(i);",
        "a sign in the recursion of L-BFGS",
        "tests/test_lbfgs.py",
    ),
    Mutant(
        "csrc/cuda/norm.cuh",
        "  __syncthreads();\n",
        "",
        "a barrier is missing before partial sums are read",
        "tests/test_clipping_bitwise.py tests/test_cuda_clipping.py",
        emulated=True,
    ),
    Mutant(
        "csrc/cuda/factored_block.cuh",
        "  __syncthreads();\n  if (threadIdx.x < kLanes) {",
        "  if (threadIdx.x < kLanes) {",
        "a barrier is missing before accumulators are read",
        "tests/test_cuda_adafactor.py",
        emulated=True,
    ),
    Mutant(
        "csrc/cuda/mirror.h",
        "std::min<size_t>(noted(), capacity)",
        "std::min<size_t>(noted(), capacity - 1)",
        "one word of a full patch waits for the next launch",
        "tests/test_cuda_step.py tests/test_cuda_bitwise.py",
        emulated=True,
    ),
    Mutant(
        "csrc/cuda/mirror.h",
        "known_[at_[i]] = before_[i];",
        "known_[at_[i]] = word_[i];",
        "words that were never sent are taken for known",
        "tests/test_cuda_failures.py tests/test_cuda_step.py tests/test_cuda_graphs.py",
        emulated=True,
    ),
)
