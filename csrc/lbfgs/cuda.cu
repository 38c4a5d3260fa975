// Launches the CUDA engine's sweeps over the vectors of L-BFGS.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "engines.h"

#include <algorithm>

#include "../cuda/runtime.h"
#include "kernels.cuh"

namespace fusedopt::cuda {
namespace {

template <class T>
cudaError_t bring_for() {
  return bring(fusedopt_cuda::history_products<T, true>, fusedopt_cuda::history_products<T, false>,
               fusedopt_cuda::history_direction<T>, fusedopt_cuda::history_conclude<T>, fusedopt_cuda::history_move<T>,
               fusedopt_cuda::history_gather<T>);
}

template <class T>
void conclude(int64_t numel, int results, const T* sums, double* out, const Place& place) {
  put(place, static_cast<uint32_t>(results), kAccumulators, fusedopt_cuda::history_conclude<T>, sums,
      history::chunks_of(numel), results, out);
}

template <class T>
void put_products(const history::Products& job, T* sums, double* out, const Place& place) {
  int first = 0;
  do {
    fusedopt_cuda::ProductsArguments<T> arguments = {job.numel,
                                                     job.grad,
                                                     job.previous,
                                                     job.direction,
                                                     static_cast<T>(job.t),
                                                     sums,
                                                     job.results(),
                                                     first,
                                                     std::min(job.count - first, fusedopt_cuda::kSlice),
                                                     {}};
    std::copy_n(job.vectors + first, arguments.count, arguments.vectors);
    put_chunks(history::chunks_of(job.numel), place,
               job.previous ? fusedopt_cuda::history_products<T, true> : fusedopt_cuda::history_products<T, false>,
               arguments);
    first += arguments.count;
  } while (first < job.count);
  conclude(job.numel, job.results(), sums, out, place);
}

template <class T>
void put_direction(const history::Direction& job, T* sums, double* out, const Place& place, bool& wrote) {
  const int all = job.dir_count + job.step_count;
  int first = 0;
  do {
    const int count = std::min(all - first, fusedopt_cuda::kSlice), last = first + count;
    const bool ends = last == all, scales = job.dir_count >= first && (job.dir_count < last || ends);
    fusedopt_cuda::DirectionArguments<T> arguments = {job.numel,
                                                      job.grad,
                                                      job.previous,
                                                      job.direction,
                                                      job.y,
                                                      job.s,
                                                      static_cast<T>(job.t),
                                                      static_cast<T>(job.scale),
                                                      sums,
                                                      first == 0,
                                                      ends,
                                                      count,
                                                      scales ? job.dir_count - first : -1,
                                                      {},
                                                      {}};
    for (int k = 0; k < count; ++k) {
      const int at = first + k;
      const history::Term& term = at < job.dir_count ? job.dirs[at] : job.steps[at - job.dir_count];
      arguments.vectors[k] = term.vector;
      arguments.factors[k] = static_cast<T>(term.factor);
    }
    put_chunks(history::chunks_of(job.numel), place, fusedopt_cuda::history_direction<T>, arguments);
    wrote = true;
    first = last;
  } while (first < all);
  conclude(job.numel, job.kResults, sums, out, place);
}

}  // namespace

bool ready_for_history(const Place& place) {
  static Brought brought;
  const bool captured = capturing(place);
  brought.to(place.device, [] {
    const cudaError_t error = bring_for<float>();
    return error != cudaSuccess ? error : bring_for<double>();
  });
  return captured;
}

void products(const history::Products& job, bool wide, void* sums, double* out, const Place& place) {
  use(place.device);
  wide ? put_products(job, static_cast<double*>(sums), out, place)
       : put_products(job, static_cast<float*>(sums), out, place);
}

void direction(const history::Direction& job, bool wide, void* sums, double* out, const Place& place) {
  use(place.device);
  put_together([&](bool& wrote) {
    wide ? put_direction(job, static_cast<double*>(sums), out, place, wrote)
         : put_direction(job, static_cast<float*>(sums), out, place, wrote);
  });
}

void move(const history::Move& job, bool wide, const Place& place) {
  use(place.device);
  if (wide)
    put_chunks(history::chunks_of(job.numel), place, fusedopt_cuda::history_move<double>, job, job.t);
  else
    put_chunks(history::chunks_of(job.numel), place, fusedopt_cuda::history_move<float>, job,
               static_cast<float>(job.t));
}

void gather(const history::Gather& job, bool wide, const Place& place) {
  use(place.device);
  put_chunks(history::chunks_of(job.numel), place,
             wide ? fusedopt_cuda::history_gather<double> : fusedopt_cuda::history_gather<float>, job);
}

}  // namespace fusedopt::cuda
