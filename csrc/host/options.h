// What an optimizer may be asked to keep beside its rule's states, and in which storage.
#pragma once

#include "device.h"
#include "python.h"

namespace fusedopt {

// From this many elements on a state is kept in codes where codes are asked for: below, it would save less than the
// allocation that its scales take.
constexpr int64_t kLeastCoded = 4096;

// The tensors of a param's state that are none of its rule's: places in a row's list of them. After them the order of
// the dimensions in which states in codes lie, which is no tensor; and the partners by their names, of which a row has
// one.
enum Attached {
  kPartnerTensor,
  kAverageTensor,
  kScaleTensor,
  kAttached = kScaleTensor + kMaxStates,
  kOrder = kAttached,
  kPartnerNames,
  kNames = kPartnerNames + 3
};
constexpr const char* kPartnerName[] = {"master", "remainder", "compensation"};

struct Options {
  std::vector<std::optional<Dtype>> state;  // of each of the rule's
  Pair pair = Pair::none;
  bool average = false;
  bool stochastic = false;
  uint64_t seed = 0;
  // What new states of params in 16 bits are stored in, unless `state` says it.
  std::optional<at::ScalarType> of_bfloat16, of_float16;
  py::object copies;  // of params, by param
  // Of params on a device: states and what else is kept are on the host, and what travels does so in buffers of so many
  // bytes; 0: all is on the param's device.
  int64_t offload = 0;

  struct Key {
    Ref name;
    int at;  // among Attached
  };
  std::vector<Key> keys;

  // Whether a step of torch's, which knows of none, would be another.
  bool beyond_torch() const { return any() || offload > 0; }
  // Whether rows have something beside their rule's.
  bool any() const {
    bool any = !keys.empty() || stochastic || pair == Pair::copy;
    for (const auto& storage : state) any = any || storage;
    return any;
  }

  Options(const Rule& rule, const py::dict& given) : state(rule.states) {
    const auto add = [&](const std::string& name, int at) { keys.push_back({intern(name.c_str()), at}); };
    if (given.contains("partner")) {
      const auto name = given["partner"].cast<std::string>();
      pair = named(kPairs, name);
      add(name, kPartnerTensor);
    }
    if (given.contains("copies")) {
      pair = Pair::copy;
      copies = given["copies"];
    }
    average = given.contains("average");
    if (average) add("ema", kAverageTensor);
    stochastic = given.contains("stochastic");
    if (given.contains("offload")) offload = given["offload"].cast<int64_t>();
    if (given.contains("seed")) seed = given["seed"].cast<uint64_t>();
    if (given.contains("new_states")) {
      for (const auto& [own, storage] : given["new_states"].cast<py::dict>()) {
        const at::ScalarType type = scalar_type(named(kStorages, storage.cast<std::string>()));
        (named(kStorages, own.cast<std::string>()) == Dtype::bf16 ? of_bfloat16 : of_float16) = type;
      }
    }
    if (!given.contains("states")) return;
    bool any_coded = false;
    for (const auto& [name, storage] : given["states"].cast<py::dict>()) {
      const std::string key = name.cast<std::string>();
      for (int k = 0; k < rule.states; ++k) {
        if (key != rule.state_names[k]) continue;
        state[k] = named(kStorages, storage.cast<std::string>());
        if (!coded(k)) continue;
        any_coded = true;
        add(key + "_scale", kScaleTensor + k);
      }
    }
    if (!any_coded) return;
    add("code_order", kOrder);
  }

  bool coded(int k) const { return state[k] && is_coded(*state[k]); }
  // Whether it is rounded up or down by chance: a state that was asked to be in 16 bits is, since to the nearest a slow
  // average would stand still.
  bool by_chance(int k) const {
    return stochastic || (state[k] && (*state[k] == Dtype::bf16 || *state[k] == Dtype::f16 || *state[k] == Dtype::r16));
  }
  // The place of its partner among their names; -1: it has none in the state.
  int partner_name() const {
    return pair == Pair::master ? 0 : pair == Pair::remainder ? 1 : pair == Pair::compensation ? 2 : -1;
  }
  bool draws() const {
    bool draws = stochastic;
    for (size_t k = 0; k < state.size(); ++k) draws = draws || by_chance(static_cast<int>(k));
    return draws;
  }
  // What a state's tensor holds, which may be the roots of its numbers.
  Dtype meant(int k, Dtype found) const { return found == Dtype::f16 && state[k] == Dtype::r16 ? Dtype::r16 : found; }
  // Whether a new state k of a param is kept in codes.
  bool codes(int k, const TensorImpl& param) const {
    return coded(k) && !is_complex(param) && param.numel() >= kLeastCoded;
  }

  // What a new state k of a param is kept in, if not in codes.
  at::ScalarType storage_of_state(int k, const TensorImpl& param) const {
    const at::ScalarType own = c10::typeMetaToScalarType(param.dtype());
    if (!state[k])
      return (own == at::kBFloat16 ? of_bfloat16 : own == at::kHalf ? of_float16 : std::nullopt).value_or(own);
    if (coded(k) && (is_complex(param) || own == at::kDouble)) return own;
    const at::ScalarType real = scalar_type(*state[k]);
    return is_complex(param) ? c10::toComplexType(real) : real;
  }

  // What a storage is called in Python.
  static Dtype storage(const std::string& name) { return named(kStorages, name); }

 private:
  template <class Value, size_t n>
  static Value named(const std::pair<const char*, Value> (&table)[n], const std::string& name) {
    for (const auto& [known, value] : table)
      if (name == known) return value;
    throw py::value_error("no storage and no partner is named '" + name + "'");
  }
  static constexpr std::pair<const char*, Pair> kPairs[] = {
      {kPartnerName[0], Pair::master}, {kPartnerName[1], Pair::remainder}, {kPartnerName[2], Pair::compensation}};
  static constexpr std::pair<const char*, Dtype> kStorages[] = {
      {"float32", Dtype::f32}, {"bfloat16", Dtype::bf16}, {"float16", Dtype::f16}, {"float16_root", Dtype::r16},
      {"int8", Dtype::i8},     {"uint8", Dtype::u8},      {"int4", Dtype::i4},     {"uint4", Dtype::u4}};
  // Small states that would be in codes are in float32.
  static at::ScalarType scalar_type(Dtype dtype) {
    switch (dtype) {
      case Dtype::f16:
      case Dtype::r16:
        return at::kHalf;
      case Dtype::bf16:
        return at::kBFloat16;
      default:
        return at::kFloat;
    }
  }
};

// The dimensions of a tensor by descending strides, those that have but one place last.
inline std::vector<int64_t> order_of(const TensorImpl& impl) {
  std::vector<int64_t> order(impl.dim());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int64_t d) { return impl.sizes()[d] == 1 ? -1 : impl.strides()[d]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) > key(b); });
  return order;
}

inline bool in_16_bits(const TensorImpl& impl) {
  const at::ScalarType type = c10::typeMetaToScalarType(impl.dtype());
  return type == at::kBFloat16 || type == at::kHalf;
}

inline int64_t blocks_of(const TensorImpl& param) { return (param.numel() + kCodeBlock - 1) / kCodeBlock; }

// Codes of a param's elements, to torch a row of bytes for each block. They tell by their type whether they have a sign
// and by their width how many bits. Not inlined: a look at other states would pay for it in registers.
__attribute__((noinline)) inline bool codes_of(const TensorImpl& impl, const TensorImpl& param, Dtype& dtype) {
  const bool with_sign = c10::typeMetaToScalarType(impl.dtype()) == at::kChar;
  if (!with_sign && c10::typeMetaToScalarType(impl.dtype()) != at::kByte) return false;
  if (impl.dim() != 2 || impl.sizes()[0] != blocks_of(param) || !impl.is_contiguous()) return false;
  if (impl.storage_offset() % sizeof(uint32_t) != 0) return false;
  for (const Dtype code : {with_sign ? Dtype::i8 : Dtype::u8, with_sign ? Dtype::i4 : Dtype::u4}) {
    dtype = code;
    if (impl.sizes()[1] == code_bytes(code)) return true;
  }
  return false;
}
inline bool are_codes(const TensorImpl& impl, const TensorImpl& param, Dtype dtype) {
  Dtype found;
  return codes_of(impl, param, found) && found == dtype;
}

}  // namespace fusedopt
