#include "isa.h"

namespace fusedopt {

#ifdef __x86_64__
// It paid on a Cascade Lake; an EPYC 9004's own prefetcher was better left alone.
const int64_t g_prefetch_distance = (__builtin_cpu_init(), __builtin_cpu_is("intel")) ? 512 : INT64_MAX / 2;
#else
const int64_t g_prefetch_distance = INT64_MAX / 2;
#endif

}  // namespace fusedopt
