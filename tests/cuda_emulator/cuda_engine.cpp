// The CUDA engine, kernels and launcher as they are, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/cuda/engine.cu"
