// The CUDA engine: how a step is put on a stream.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "../adafactor/cuda_table.h"
#include "../registry.h"
#include "mirror.h"
#include "patch.cuh"
#include "rule_kernels.h"
#include "runtime.h"
#include "totals.cuh"

#include <map>
#include <mutex>
#include <stdexcept>

namespace fusedopt_cuda {
const fusedopt::cuda::RuleKernels& factored_kernels();
}

namespace fusedopt::cuda {
namespace {

const RuleKernels& find_kernels(const Rule& rule) {
  if (rule.factored) return fusedopt_cuda::factored_kernels();
  for (const Registry& registry : registries())
    for (const CudaRule* kernels = registry.cuda; *kernels; ++kernels)
      if (std::strcmp((*kernels)().name(), rule.name) == 0) return (*kernels)();
  throw std::runtime_error("rule '" + std::string(rule.name) +
                           "' was compiled where nvcc was not found, and has no CUDA kernels; compile it where it is");
}

unsigned advance_threads(size_t work) {
  return static_cast<unsigned>(std::min<size_t>((work + kLanes - 1) / kLanes * kLanes, kAdvanceThreads));
}

Brought& brought(const RuleKernels& kernels) {
  static std::mutex mutex;
  static std::map<const RuleKernels*, Brought> all;
  const std::lock_guard<std::mutex> lock(mutex);
  return all[&kernels];
}

}  // namespace

bool built() { return true; }
const char* built_for() { return FUSEDOPT_CUDA_ARCHITECTURES; }

const char* obstacle(int device) try {
  static thread_local std::string said;
  // A runtime needs a driver of its major version, and a launch with 32 KiB of parameters one of CUDA 12.1.
  constexpr int needed = std::max(CUDART_VERSION / 1000 * 1000, 12010);
  const auto named = [](int version) {
    return "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  int driver = 0;
  check_earlier(cudaDriverGetVersion(&driver));
  if (driver < needed)
    return (said = "the NVIDIA driver is one of " + named(driver) + ", and this build of fusedopt needs one of " +
                   named(needed) + "; update the driver, or build fusedopt with a toolkit of the driver's CUDA")
        .c_str();
  use(device);
  const Relaxed relaxed;
  const cudaError_t error = bring(fusedopt_cuda::patch_table<kSmallPatch>);
  switch (error) {
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorUnsupportedPtxVersion:
      cudaGetLastError();
      return (said = no_kernels_for(device)).c_str();
    default:
      check_earlier(error);
      return "";
  }
} catch (const std::runtime_error&) {
  return nullptr;
}

bool ready(const Place& place, const Rule& rule) {
  const bool captured = capturing(place);
  const RuleKernels& kernels = find_kernels(rule);
  check_earlier(kernels.use(place.device));
  brought(kernels).to(place.device, [&] {
    const cudaError_t error = kernels.load();
    return error != cudaSuccess
               ? error
               : bring(fusedopt_cuda::patch_table<kSmallPatch>, fusedopt_cuda::patch_table<kLargePatch>,
                       fusedopt_cuda::collect_totals, fusedopt_cuda::return_totals, fusedopt_cuda::collect_joint_totals,
                       fusedopt_cuda::return_joint_totals);
  });
  return captured;
}

void hold_for_graph(const Place& place, void* data, void (*leave)(void*)) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  cudaUserObject_t object;
  cudaError_t error = cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(place.stream), &status, nullptr, &graph);
  if (error == cudaSuccess && status != cudaStreamCaptureStatusActive) error = cudaErrorStreamCaptureInvalidated;
  if (error == cudaSuccess) error = cudaUserObjectCreate(&object, data, leave, 1, cudaUserObjectNoDestructorSync);
  if (error != cudaSuccess) {
    leave(data);
    check_earlier(error);
  }
  error = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
  if (error == cudaSuccess) return;
  cudaUserObjectRelease(object, 1);
  check_earlier(error);
}

void synchronize(const Place& place) {
  use(place.device);
  const Relaxed relaxed;
  check_earlier(cudaStreamSynchronize(static_cast<cudaStream_t>(place.stream)));
}

struct Table::State {
  Mirror mirror;
  void* memory = nullptr;

  // Sends noted words until at most `leave` are left.
  void send(const Place& place, size_t leave) {
    while (mirror.noted() > leave) {
      if (mirror.noted() > kSmallPatch)
        send_patch<kLargePatch>(place);
      else
        send_patch<kSmallPatch>(place);
    }
  }

  template <int capacity>
  void send_patch(const Place& place) {
    Patch<capacity> patch;
    mirror.fill(patch);
    put(place, 1, advance_threads(patch.count), fusedopt_cuda::patch_table<capacity>, static_cast<uint64_t*>(memory),
        patch);
    mirror.sent(patch.count);
  }

  template <int capacity>
  void advance(const Step& step, const Place& place, const RuleKernels& kernels) {
    Patch<capacity> patch;
    mirror.fill(patch);
    const AdvanceArguments arguments = {mirror.view(memory),
                                        static_cast<uint32_t>(step.entries.size()),
                                        step.multiplier,
                                        {step.grad_scale.device, step.grad_scale.dtype},
                                        {step.found_inf.device, step.found_inf.dtype},
                                        step.skipped};
    put(place, 1, advance_threads(std::max<size_t>(patch.count, step.entries.size())),
        [&](const cudaLaunchConfig_t& config) { return kernels.advance(config, arguments, patch); });
    mirror.sent(patch.count);
  }
};

Table::Table() : state_(std::make_unique<State>()) {}
Table::~Table() = default;
Table::Table(Table&&) noexcept = default;

size_t Table::lacks(const Step& step) {
  const size_t words =
      state_->mirror.reserve(step, [&](const Row& row) { return fusedopt_cuda::kernel_of(row, *step.rule); });
  return words * sizeof(uint64_t);
}

void Table::bind(void* memory) {
  state_->memory = memory;
  state_->mirror.find();
}

void Table::send(const Step& step, const Place& place) {
  use(place.device);
  state_->mirror.compose(step);
  state_->send(place, 0);
}

void Table::send_groups(const Step& step, const Place& place) {
  use(place.device);
  state_->mirror.compose_groups(step);
  try {
    state_->send(place, 0);
  } catch (...) {
    state_->mirror.take_back();
    throw;
  }
}

void Table::launch(const Step& step, const Place& place) {
  use(place.device);
  try {
    put_together([&](bool& wrote) { put_all(step, place, wrote); });
  } catch (...) {
    state_->mirror.lose();
    throw;
  }
}

void Table::put_all(const Step& step, const Place& place, bool& wrote) {
  State& state = *state_;
  const RuleKernels& kernels = find_kernels(*step.rule);
  check_earlier(kernels.use(place.device));
  state.mirror.compose(step);
  state.send(place, kLargePatch);
  if (state.mirror.noted() > kSmallPatch)
    state.advance<kLargePatch>(step, place, kernels);
  else
    state.advance<kSmallPatch>(step, place, kernels);
  for (const Entry& entry : step.entries)
    for (int c = 0; c < step.rule->counters; ++c) wrote = wrote || entry.counter[c].device;
  const uint32_t slots = static_cast<uint32_t>(step.slots);
  const uint32_t* skipped = step.found_inf.device ? step.skipped : nullptr;
  using Config = const cudaLaunchConfig_t;
  // f(launch, blocks, threads, arguments) for each launch that has something to do.
  const auto each = [&](auto&& f) {
    for (const Mirror::Launch& launch : state.mirror.launches()) {
      if (launch.chunks == 0 && !step.rule->joint) continue;
      const int warps = step.factored ? 1 : kWarps;
      const unsigned threads = step.factored ? fusedopt_cuda::kFactoredThreads : warps * kLanes;
      const UpdateArguments arguments = {state.mirror.view(state.memory),
                                         launch.starts,
                                         launch.sums,
                                         launch.totals,
                                         step.factored ? static_cast<uint32_t>(step.last - step.first) : slots,
                                         launch.chunks,
                                         skipped,
                                         step.key,
                                         step.first_slot};
      f(launch, (launch.chunks + warps - 1) / warps, threads, arguments);
    }
  };
  const auto sweep = [&](const Mirror::Launch& launch, uint32_t blocks, unsigned threads, const UpdateArguments& a) {
    if (blocks > 0) put(place, blocks, threads, [&](Config& c) { return kernels.measure(c, launch.kernel, a); });
  };
  const auto conclude = [&](const UpdateArguments& a) {
    put(place, slots, kAccumulators, [&](Config& c) { return kernels.conclude(c, a); });
  };
  const auto measure = [&](const Mirror::Launch& launch, uint32_t blocks, unsigned threads, const UpdateArguments& a) {
    sweep(launch, blocks, threads, a);
    conclude(a);
  };
  const auto update = [&](const Mirror::Launch& launch, uint32_t blocks, unsigned threads, const UpdateArguments& a) {
    put(place, blocks, threads, [&](Config& c) { return kernels.update(c, launch.kernel, a); });
  };
  const Exchange* exchange = step.exchange;
  if (step.factored && exchange) {
    using namespace fusedopt_cuda;
    const auto put_passes = [&](int first, int last) {
      each([&](const Mirror::Launch& launch, uint32_t blocks, unsigned threads, const UpdateArguments& a) {
        const int pass = launch.kernel / kFactoredKinds;
        if (pass >= first && pass < last) update(launch, blocks, threads, a);
      });
    };
    put_passes(kMeasure, kTake);
    exchange->add_up();
    put_passes(kTake, kConclude);
    exchange->add_up_squares();
    wrote = true;
    return put_passes(kConclude, kFactoredPasses);
  }
  if (exchange && !step.rule->joint) {
    const auto each_total = [&](auto* kernel, const Mirror::Launch& launch, const UpdateArguments& a) {
      const TotalsArguments arguments = {
          a.table.words, a.starts, a.sums, static_cast<uint32_t>(step.rule->sums), exchange->parts, exchange->totals};
      put(place, slots, kAccumulators, kernel, arguments);
    };
    each([&](const Mirror::Launch& launch, uint32_t blocks, unsigned threads, const UpdateArguments& a) {
      if (!launch.measures) return;
      sweep(launch, blocks, threads, a);
      each_total(fusedopt_cuda::collect_totals, launch, a);
    });
    exchange->add_up();
    each([&](const Mirror::Launch& launch, uint32_t, unsigned, const UpdateArguments& a) {
      if (!launch.measures) return;
      each_total(fusedopt_cuda::return_totals, launch, a);
      conclude(a);
    });
  }
  if (step.rule->joint && slots > 0) {
    each(measure);
    const auto& launches = state.mirror.launches();
    const auto count = static_cast<uint32_t>(launches.size());
    if (exchange) {
      double* noted = reinterpret_cast<double*>(static_cast<uint64_t*>(state.memory) + launches[0].totals);
      const JointTotalsArguments totals = {
          noted, count, slots, static_cast<uint32_t>(step.rule->sums), exchange->parts, exchange->totals};
      put(place, slots, kLanes, fusedopt_cuda::collect_joint_totals, totals);
      exchange->add_up();
      put(place, slots, kLanes, fusedopt_cuda::return_joint_totals, totals);
    }
    const JointArguments arguments = {
        state.mirror.view(state.memory),           launches.empty() ? 0 : launches[0].totals,  count,  slots,
        static_cast<uint32_t>(step.groups.size()), static_cast<uint32_t>(step.entries.size()), skipped};
    put(place, 1, kAccumulators, [&](Config& c) { return kernels.conclude_all(c, arguments); });
    wrote = true;
  }
  each([&](const Mirror::Launch& launch, uint32_t blocks, unsigned threads, const UpdateArguments& a) {
    if (blocks == 0) return;
    if (launch.measures && !step.rule->joint && !exchange) measure(launch, blocks, threads, a);
    update(launch, blocks, threads, a);
    wrote = true;
  });
}

}  // namespace fusedopt::cuda
