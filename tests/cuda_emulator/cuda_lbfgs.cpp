// The CUDA engine's sweeps of L-BFGS, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/lbfgs/cuda.cu"
