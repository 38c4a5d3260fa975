#include "engines.h"

#include <algorithm>
#include <vector>

#include "../cpu/engine.h"
#include "../cpu/parallel.h"

namespace fusedopt::cpu {
namespace {

// Calls f(first, last) for shares of the chunks. `vectors` of the length `numel` are swept.
template <class F>
void share_chunks(int64_t numel, int64_t vectors, int threads, F&& f) {
  // kTeamSaves counts the elements of an update, which has some four operands.
  const int64_t work = numel * vectors / 4, chunks = history::chunks_of(numel);
  parallel(work, threads, [&](int thread, int of) { f(chunks * thread / of, chunks * (thread + 1) / of); });
}

// Sweeps with results, and adds these up.
template <class F>
std::vector<double> sum_up(int64_t numel, int64_t vectors, int results, int threads, F&& f) {
  const int64_t chunks = history::chunks_of(numel);
  std::vector<double> sums(chunks * results), out(static_cast<size_t>(kAccumulators) * results);
  share_chunks(numel, vectors, threads, [&](int64_t first, int64_t last) { f(first, last, sums.data()); });
  chosen_isa().history().conclude(sums.data(), chunks, results, out.data());
  out.resize(results);
  return out;
}

}  // namespace

std::vector<double> products(const history::Products& job, bool wide, int threads) {
  return sum_up(job.numel, 1 + job.all(), job.results(), threads, [&](int64_t first, int64_t last, double* sums) {
    chosen_isa().history().products[wide](job, first, last, sums);
  });
}

std::vector<double> direction(const history::Direction& job, bool wide, int threads) {
  return sum_up(job.numel, 3 + job.dir_count + job.step_count, job.kResults, threads,
                [&](int64_t first, int64_t last, double* sums) {
                  chosen_isa().history().direction[wide](job, first, last, sums);
                });
}

void move(const history::Move& job, bool wide, int threads) {
  share_chunks(job.numel, 3, threads,
               [&](int64_t first, int64_t last) { chosen_isa().history().move[wide](job, first, last); });
}

void gather(const history::Gather& job, bool wide, int threads) {
  share_chunks(job.numel, 2, threads,
               [&](int64_t first, int64_t last) { chosen_isa().history().gather[wide](job, first, last); });
}

}  // namespace fusedopt::cpu
