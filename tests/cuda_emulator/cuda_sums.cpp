// The kernels that rules with sums have in common, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/cuda/sums.cu"
