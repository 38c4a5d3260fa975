// The CUDA engine, kernels and launcher as they are, compiled against the emulator's cuda_runtime.h.
#define FUSEDOPT_CUDA_ARCHITECTURES "emulated"
#include "../../csrc/cuda/engine.cu"
