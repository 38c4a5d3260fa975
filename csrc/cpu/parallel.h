// The one way to use several threads: a team of torch's size, in the OpenMP runtime that torch loaded.
#pragma once

#include <omp.h>

#include <cstdint>

#include "isa.h"
#ifdef FUSEDOPT_X86
#include <xmmintrin.h>
#endif

namespace fusedopt::cpu {

// False in a forked child whose parent had a team, and inside another parallel region.
bool team_available();
void note_team();

// Calls share(thread, of) on each thread of a team, or share(0, 1) where a team is not worth its start of 2 to 5 us. All
// teams have the same size: libgomp dismisses the threads that a smaller one leaves idle and starts them anew for the next.
template <class F>
void parallel(bool worthwhile, int threads, F&& share) {
  if (!worthwhile || threads <= 1 || !team_available()) return share(0, 1);
  note_team();
#ifdef FUSEDOPT_X86
  // Rounding and denormal modes belong to a thread: the team takes over the caller's, or results would depend on it.
  const unsigned mode = _mm_getcsr();
#endif
#pragma omp parallel num_threads(threads)
  {
#ifdef FUSEDOPT_X86
    const unsigned own = _mm_getcsr();
    _mm_setcsr(mode);
#endif
    share(omp_get_thread_num(), omp_get_num_threads());
#ifdef FUSEDOPT_X86
    _mm_setcsr(own);
#endif
  }
}

}  // namespace fusedopt::cpu
