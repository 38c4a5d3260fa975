// Copies between device and host, compiled against the emulator's cuda_runtime.h.
#include "../../csrc/cuda/transport.cu"
