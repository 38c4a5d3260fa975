// The CUDA engine's kernels for factored second moments, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/adafactor/cuda.cu"
