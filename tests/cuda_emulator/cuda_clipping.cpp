// The CUDA engine's sweeps over gradients, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/clipping/cuda.cu"
