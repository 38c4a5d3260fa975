// What an optimizer may be asked to keep beside its rule's states, and in which storage. Included by bindings.cpp,
// after torch.
#pragma once

#include <optional>

#include "group.h"

namespace fusedopt {

// From this many elements on a state is kept in codes where codes are asked for: below, it would save less than the
// allocation that its scales take.
constexpr int64_t kLeastCoded = 4096;

// The tensors of a param's state that are none of its rule's: places in a row's list of them.
enum Attached { kPartnerTensor, kAverageTensor, kScaleTensor, kAttached = kScaleTensor + kMaxStates };

struct Options {
  std::vector<std::optional<at::ScalarType>> state;  // of each of the rule's; kChar and kByte are codes
  Pair pair = Pair::none;
  bool master = false;  // the partner is the exact one, and the param its copy
  bool average = false;
  bool stochastic = false;
  uint64_t seed = 0;

  struct Key {
    Ref name;
    int at;  // among Attached
  };
  std::vector<Key> keys;

  bool any() const {
    bool any = !keys.empty() || stochastic;
    for (const auto& storage : state) any = any || storage;
    return any;
  }

  Options(const Rule& rule, const py::dict& given) : state(rule.states) {
    const auto add = [&](const std::string& name, int at) { keys.push_back({GroupNames::intern(name.c_str()), at}); };
    if (given.contains("partner")) {
      const auto name = given["partner"].cast<std::string>();
      master = name == "master";
      pair = name == "remainder" ? Pair::remainder : name == "compensation" ? Pair::compensation : Pair::copy;
      add(name, kPartnerTensor);
    }
    average = given.contains("average");
    if (average) add("ema", kAverageTensor);
    stochastic = given.contains("seed");
    if (stochastic) seed = given["seed"].cast<uint64_t>();
    if (!given.contains("states")) return;
    for (const auto& [name, storage] : given["states"].cast<py::dict>()) {
      const std::string key = name.cast<std::string>(), type = storage.cast<std::string>();
      for (int k = 0; k < rule.states; ++k) {
        if (key != rule.state_names[k]) continue;
        state[k] = type == "float32"    ? at::kFloat
                   : type == "float16"  ? at::kHalf
                   : type == "bfloat16" ? at::kBFloat16
                   : type == "int8"     ? at::kChar
                                        : at::kByte;
        if (coded(k)) add(key + "_scale", kScaleTensor + k);
      }
    }
  }

  bool coded(int k) const { return state[k] == at::kChar || state[k] == at::kByte; }

  // What a new state k of a param is kept in.
  at::ScalarType storage_of_state(int k, const TensorImpl& param) const {
    const at::ScalarType own = param.dtype().toScalarType();
    if (!state[k]) return own;
    if (is_complex(param)) return coded(k) ? own : c10::toComplexType(*state[k]);
    if (coded(k) && param.numel() < kLeastCoded) return own == at::kDouble ? own : at::kFloat;
    return *state[k];
  }
};

inline bool in_16_bits(const TensorImpl& impl) {
  const at::ScalarType type = impl.dtype().toScalarType();
  return type == at::kBFloat16 || type == at::kHalf;
}

// The storage of a state; false if the engines have none.
inline bool storage_of_state(const TensorImpl& impl, Dtype& dtype) {
  const at::ScalarType type = impl.dtype().toScalarType();
  if (type == at::kChar || type == at::kByte) {
    dtype = type == at::kChar ? Dtype::i8 : Dtype::u8;
    return true;
  }
  return storage_of(impl, dtype);
}

inline int64_t blocks_of(const TensorImpl& impl) { return (impl.numel() + kCodeBlock - 1) / kCodeBlock; }

}  // namespace fusedopt
