// The CUDA engine: the kernels of every rule, and how a step is put on a stream.
#define FUSEDOPT_NAMESPACE fusedopt_cuda
#include "kernels.cuh"
#include "measure.cuh"
#include "mirror.h"
#include "runtime.h"

#include <mutex>
#include <stdexcept>

#ifndef FUSEDOPT_CUDA_ARCHITECTURES
#define FUSEDOPT_CUDA_ARCHITECTURES "emulated"
#endif

namespace FUSEDOPT_NAMESPACE {

// The kernels of one rule. Update kernels are numbered: those for the mixes of either list, then for any mix.
constexpr int kMixes = 7;
constexpr int kDoubleMixes = 4, kAnyMix = 5;

struct Kernels {
  const char* name;
  void (*advance_small)(AdvanceArguments, Patch<fusedopt::cuda::kSmallPatch>);
  void (*advance_large)(AdvanceArguments, Patch<fusedopt::cuda::kLargePatch>);
  void (*update[fusedopt::kMaxVariants * kMixes])(UpdateArguments);
  // Null unless the rule has sums.
  void (*measure[fusedopt::kMaxVariants * kMixes])(UpdateArguments);
  void (*conclude[2])(UpdateArguments);  // of rows that compute in float, in double
};

template <class R, int variant, class T, class... Mixes>
void add_mixes(MixList<Mixes...>, Kernels& kernels, int at) {
  if constexpr (R::sums > 0) {
    int also = at;
    ((kernels.measure[variant * kMixes + also++] = measure<R, variant, Mixes, T>), ...);
  }
  ((kernels.update[variant * kMixes + at++] = update<R, variant, Mixes, T>), ...);
}

template <class R, int variant = 0>
void add_variants(Kernels& kernels) {
  if constexpr (variant < R::variants) {
    add_mixes<R, variant, float>(FloatMixes(), kernels, 0);
    add_mixes<R, variant, double>(DoubleMixes(), kernels, kDoubleMixes);
    kernels.update[variant * kMixes + kAnyMix] = update_any<R, variant, float>;
    kernels.update[variant * kMixes + kAnyMix + 1] = update_any<R, variant, double>;
    if constexpr (R::sums > 0) {
      kernels.measure[variant * kMixes + kAnyMix] = measure_any<R, variant, float>;
      kernels.measure[variant * kMixes + kAnyMix + 1] = measure_any<R, variant, double>;
    }
    add_variants<R, variant + 1>(kernels);
  }
}

template <class R>
Kernels kernels_of() {
  Kernels kernels = {R::name, advance<R, fusedopt::cuda::kSmallPatch>, advance<R, fusedopt::cuda::kLargePatch>, {}, {},
                     {}};
  if constexpr (R::sums > 0) {
    kernels.conclude[0] = conclude<R, float>;
    kernels.conclude[1] = conclude<R, double>;
  }
  add_variants<R>(kernels);
  return kernels;
}

template <class... Rules>
const Kernels& find_kernels(RuleList<Rules...>, const std::string& name) {
  static const Kernels table[] = {kernels_of<Rules>()...};
  for (const Kernels& kernels : table)
    if (name == kernels.name) return kernels;
  throw std::invalid_argument("no rule is named '" + name + "'");
}

template <class M>
bool has_mix(const fusedopt::Row& row, const fusedopt::Rule& rule) {
  bool has = row.param_dtype == dtype_of(typename M::Param()) && row.grad_dtype == dtype_of(typename M::Grad());
  for (int k = 0; k < rule.states; ++k)
    has = has && (!row.state[k] || row.state_dtype[k] == dtype_of(typename M::State()));
  return has;
}

template <class... Mixes>
int find_mix(MixList<Mixes...>, const fusedopt::Row& row, const fusedopt::Rule& rule) {
  int at = 0;
  return ((has_mix<Mixes>(row, rule) ? true : (++at, false)) || ...) ? at : -1;
}

inline int kernel_of(const fusedopt::Row& row, const fusedopt::Rule& rule) {
  const bool wide = row.param_dtype == Dtype::f64;
  int mix = row.layout ? -1 : wide ? find_mix(DoubleMixes(), row, rule) : find_mix(FloatMixes(), row, rule);
  if (mix < 0)
    mix = kAnyMix + wide;
  else if (wide)
    mix += kDoubleMixes;
  return row.variant * kMixes + mix;
}

// Whether the rows of an update kernel compute in double.
inline bool is_wide(int kernel) {
  const int mix = kernel % kMixes;
  return mix == kDoubleMixes || mix == kAnyMix + 1;
}

}  // namespace FUSEDOPT_NAMESPACE

namespace fusedopt::cuda {
namespace {

using fusedopt_cuda::Kernels;

const Kernels& find_kernels(const Rule& rule) {
  return fusedopt_cuda::find_kernels(fusedopt_cuda::AllRules(), rule.name);
}

unsigned advance_threads(size_t work) {
  return static_cast<unsigned>(std::min<size_t>((work + kLanes - 1) / kLanes * kLanes, kAdvanceThreads));
}

// Has a rule's kernels brought to the device, which otherwise happens at a first launch, where a capture may forbid it.
// Throws if there are none for the device.
void load(int device, const Kernels& kernels) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernels.advance_small);
  const auto also = [&](auto* kernel) {
    if (error == cudaSuccess && kernel) error = cudaFuncGetAttributes(&attributes, kernel);
  };
  also(kernels.advance_large);
  also(fusedopt_cuda::patch_table<kSmallPatch>);
  also(fusedopt_cuda::patch_table<kLargePatch>);
  for (auto* kernel : kernels.update) also(kernel);
  for (auto* kernel : kernels.measure) also(kernel);
  for (auto* kernel : kernels.conclude) also(kernel);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (error == cudaSuccess) return;

  cudaGetLastError();
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const std::string capability = std::to_string(major) + "." + std::to_string(minor);
  fail(error, "device cuda:" + std::to_string(device) + " has compute capability " + capability +
                  ", and this build of fusedopt holds " FUSEDOPT_CUDA_ARCHITECTURES
                  "; build it again with TORCH_CUDA_ARCH_LIST=" +
                  capability);
}

// The most words that a launch's parameters hold on this machine.
int largest_patch() {
  static const int words = [] {
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12010 && CUDART_VERSION >= 12010 ? kLargePatch
                                                                                                      : kSmallPatch;
  }();
  return words;
}

}  // namespace

bool built() { return true; }
std::string built_for() { return FUSEDOPT_CUDA_ARCHITECTURES; }

bool ready(const Place& place, const Rule& rule) {
  check_earlier(cudaPeekAtLastError());
  use(place.device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_earlier(cudaStreamIsCapturing(static_cast<cudaStream_t>(place.stream), &status));

  static std::mutex mutex;
  static std::vector<std::pair<int, const Kernels*>> loaded;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::pair<int, const Kernels*> here(place.device, &find_kernels(rule));
  if (std::find(loaded.begin(), loaded.end(), here) == loaded.end()) {
    load(place.device, *here.second);
    loaded.push_back(here);
  }
  return status == cudaStreamCaptureStatusActive;
}

void synchronize(const Place& place) {
  use(place.device);
  // A capture elsewhere in the process forbids waiting, unless this thread says that it knows what it does.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  const cudaError_t error = cudaStreamSynchronize(static_cast<cudaStream_t>(place.stream));
  cudaThreadExchangeStreamCaptureMode(&mode);
  check_earlier(error);
}

struct Table::State {
  Mirror mirror;
  void* memory = nullptr;

  // Sends noted words until at most `leave` are left.
  void send(const Place& place, size_t leave) {
    while (mirror.noted() > leave) {
      if (mirror.noted() > kSmallPatch && largest_patch() == kLargePatch)
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
  void advance(const Step& step, const Place& place, void (*kernel)(AdvanceArguments, Patch<capacity>)) {
    Patch<capacity> patch;
    mirror.fill(patch);
    const AdvanceArguments arguments = {mirror.view(memory),
                                        static_cast<uint32_t>(step.entries.size()),
                                        step.multiplier,
                                        {step.grad_scale.device, step.grad_scale.dtype},
                                        {step.found_inf.device, step.found_inf.dtype},
                                        step.skipped};
    put(place, 1, advance_threads(std::max<size_t>(patch.count, step.entries.size())), kernel, arguments, patch);
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
  State& state = *state_;
  try {
    const Kernels& kernels = find_kernels(*step.rule);
    state.mirror.compose(step);
    state.send(place, largest_patch());
    if (state.mirror.noted() > kSmallPatch)
      state.advance(step, place, kernels.advance_large);
    else
      state.advance(step, place, kernels.advance_small);
    for (const Mirror::Launch& launch : state.mirror.launches()) {
      if (launch.chunks == 0) continue;
      const uint32_t slots = static_cast<uint32_t>(step.slots), blocks = (launch.chunks + kWarps - 1) / kWarps;
      const UpdateArguments arguments = {state.mirror.view(state.memory),
                                         launch.starts,
                                         launch.sums,
                                         slots,
                                         launch.chunks,
                                         step.found_inf.device ? step.skipped : nullptr};
      if (step.rule->sums > 0) {
        put(place, blocks, kWarps * kLanes, kernels.measure[launch.kernel], arguments);
        put(place, slots, kAccumulators, kernels.conclude[fusedopt_cuda::is_wide(launch.kernel)], arguments);
      }
      put(place, blocks, kWarps * kLanes, kernels.update[launch.kernel], arguments);
    }
  } catch (...) {
    state.mirror.lose();
    throw;
  }
}

}  // namespace fusedopt::cuda
