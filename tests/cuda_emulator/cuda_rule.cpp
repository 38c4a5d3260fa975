// The kernels of a few rules, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/cuda/rule.cu"
