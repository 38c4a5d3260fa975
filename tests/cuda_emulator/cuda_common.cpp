// The kernels that rules have in common, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/cuda/common.cu"
