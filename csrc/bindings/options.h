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
  std::vector<std::optional<Dtype>> state;  // of each of the rule's
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
        state[k] = type == "float32"    ? Dtype::f32
                   : type == "float16"  ? Dtype::f16
                   : type == "bfloat16" ? Dtype::bf16
                   : type == "int8"     ? Dtype::i8
                   : type == "uint8"    ? Dtype::u8
                   : type == "int4"     ? Dtype::i4
                                        : Dtype::u4;
        if (coded(k)) add(key + "_scale", kScaleTensor + k);
      }
    }
  }

  bool coded(int k) const { return state[k] && is_coded(*state[k]); }
  // Whether a new state k of a param is kept in codes.
  bool codes(int k, const TensorImpl& param) const {
    return coded(k) && !is_complex(param) && param.numel() >= kLeastCoded;
  }

  // What a new state k of a param is kept in, if not in codes.
  at::ScalarType storage_of_state(int k, const TensorImpl& param) const {
    const at::ScalarType own = param.dtype().toScalarType();
    if (!state[k] || (coded(k) && (is_complex(param) || own == at::kDouble))) return own;
    const at::ScalarType real = *state[k] == Dtype::f16    ? at::kHalf
                                : *state[k] == Dtype::bf16 ? at::kBFloat16
                                                           : at::kFloat;
    return is_complex(param) ? c10::toComplexType(real) : real;
  }
};

inline bool in_16_bits(const TensorImpl& impl) {
  const at::ScalarType type = impl.dtype().toScalarType();
  return type == at::kBFloat16 || type == at::kHalf;
}

inline int64_t blocks_of(const TensorImpl& param) { return (param.numel() + kCodeBlock - 1) / kCodeBlock; }

// Codes of a param's elements, to torch a row of bytes for each block. They tell by their type whether they have a sign
// and by their width how many bits.
inline bool codes_of(const TensorImpl& impl, const TensorImpl& param, Dtype& dtype) {
  const bool with_sign = impl.dtype().toScalarType() == at::kChar;
  if (!with_sign && impl.dtype().toScalarType() != at::kByte) return false;
  if (impl.dim() != 2 || impl.sizes()[0] != blocks_of(param) || !impl.is_contiguous()) return false;
  if (impl.storage_offset() % sizeof(uint32_t) != 0) return false;
  for (const Dtype code : {with_sign ? Dtype::i8 : Dtype::u8, with_sign ? Dtype::i4 : Dtype::u4}) {
    dtype = code;
    if (impl.sizes()[1] == code_bytes(code)) return true;
  }
  return false;
}

inline at::Tensor new_codes(Dtype dtype, const at::Tensor& param) {
  const at::ScalarType byte = dtype == Dtype::i8 || dtype == Dtype::i4 ? at::kChar : at::kByte;
  return at::zeros({blocks_of(*param.unsafeGetTensorImpl()), code_bytes(dtype)}, param.options().dtype(byte));
}

}  // namespace fusedopt
