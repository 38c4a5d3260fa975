// The CUDA engine's kernels for factored second moments, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/cuda/factored.cu"
