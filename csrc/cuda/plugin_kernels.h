// The one rule's kernels of a shared object, for code that has no CUDA headers.
#pragma once

namespace fusedopt::cuda {
class RuleKernels;
const RuleKernels* only_kernels();
}  // namespace fusedopt::cuda
