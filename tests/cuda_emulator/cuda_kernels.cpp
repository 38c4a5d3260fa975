// The kernels of every rule, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/cuda/kernels.cu"
