// Teams of threads. Included by what is compiled for the baseline instruction set alone.
#pragma once

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#ifdef __x86_64__
#include <xmmintrin.h>
#endif

namespace fusedopt::cpu {

// libgomp's threads do not survive fork(), and a team of theirs would wait for them for ever. A child whose parent had
// started them steps on one thread.
inline std::atomic<bool> g_team_started{false};
inline std::atomic<bool> g_team_lost{false};
inline const int g_fork_handler = pthread_atfork(nullptr, nullptr, [] {
  if (g_team_started) g_team_lost = true;
});

// Elements that a team must take off the calling thread to be worth its start. Waking threads that sleep takes 130 to
// 190 us, as long as one core needs for some 300,000 elements in its cache; threads that still spin answer in 2 to 5
// us, but on a core shared with the caller they have slowed everything before by half.
constexpr int64_t kTeamSaves = 1 << 18;

// And those that a team must save which this thread has used so short a time ago that its threads still spin.
constexpr int64_t kAwakeTeamSaves = kTeamSaves / 16;
constexpr std::chrono::microseconds kSpinning{200};
inline thread_local std::chrono::steady_clock::time_point g_team_used;

// Calls share(thread, of) on each thread of a team, or share(0, 1) where a team is not worth its start: `work` is all
// there is to do, in elements. All teams have the same size: libgomp dismisses the threads that a smaller one leaves
// idle and starts them anew for the next.
template <class F>
void parallel(int64_t work, int threads, F&& share) {
  const int64_t saves = work - work / std::max(threads, 1);
  if (saves < kAwakeTeamSaves || threads <= 1 || g_team_lost || omp_in_parallel()) return share(0, 1);
  if (saves < kTeamSaves && std::chrono::steady_clock::now() - g_team_used > kSpinning) return share(0, 1);
  g_team_started = true;
#ifdef __x86_64__
  // Rounding and denormal modes belong to a thread: the team takes over the caller's, or results would depend on it.
  const unsigned mode = _mm_getcsr();
#endif
#pragma omp parallel num_threads(threads)
  {
#ifdef __x86_64__
    const unsigned own = _mm_getcsr();
    _mm_setcsr(mode);
#endif
    share(omp_get_thread_num(), omp_get_num_threads());
#ifdef __x86_64__
    _mm_setcsr(own);
#endif
  }
  g_team_used = std::chrono::steady_clock::now();
}

}  // namespace fusedopt::cpu
