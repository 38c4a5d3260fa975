// The plan: an optimizer's params, gradients and states, found and checked at every step without hashing and without Python
// code, and handed to an engine as rows. Included by bindings.cpp, after torch.
//
// A plan owns nothing of the user's. It remembers addresses, compares them, and re-reads every fact from the live
// object behind an address that matched, so it cannot be stale and keeps no tensor alive.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../cpu/engine.h"
#include "group.h"
#include "tensor.h"

namespace fusedopt {

class Plan {
 public:
  Plan(std::string rule, py::dict defaults)
      : rule_name_(std::move(rule)), defaults_(std::move(defaults)), rule_(find()), names_(*rule_, defaults_) {
    for (int k = 0; k < rule_->states; ++k) keys_.push_back(GroupNames::intern(rule_->state_names[k]));
    for (int c = 0; c < rule_->counters; ++c) keys_.push_back(GroupNames::intern(rule_->counter_names[c]));
  }

  // One step of `optimizer`. Everything is checked first; then either all is written or an exception leaves all as it was.
  // Params that no engine takes come back as [(group index, [params])], nothing having been written; a second call with
  // `engine_only` then steps the others.
  py::object step(py::object optimizer, bool engine_only);

  bool skipped() const { return skipped_; }
  const std::string& rule_name() const { return rule_name_; }
  const py::dict& defaults() const { return defaults_; }

 private:
  // The keys of a param's state dict in their order there, and what each is to the rule.
  struct Signature {
    std::vector<Ref> keys;
    std::vector<int> role;  // state k: k; counter c: kMaxStates + c; else -1
  };
  struct Slot {
    PyObject* param;
    PyObject* state;  // its dict in optimizer.state, or nullptr
    const Signature* signature;
    int wave;  // 1 where the param stands in the list for the second time: it steps after the first has
  };
  struct Counter {
    void* data;
    at::ScalarType dtype;
  };
  // What stands behind rows_[i].
  struct Source {
    TensorImpl *param, *grad, *state[kMaxStates];
    Counter counter[kMaxCounters];
    int group, slot, position;
    bool first;
    uint32_t prepared;
  };
  struct Prepared {
    double scalars[kMaxScalars], before[kMaxCounters], after[kMaxCounters];
    int group;
    bool first;
  };

  const Rule* find() const {
    const Rule* rule = cpu::find_rule(rule_name_);
    if (!rule) throw py::value_error("no rule is named '" + rule_name_ + "'");
    return rule;
  }

  void read_groups(PyObject* groups);
  bool slots_match(PyObject* state) const;
  void rebuild_slots(PyObject* state);
  bool collect(int group, int slot, int position);
  bool read_state(Row& row, Source& source);
  const Signature* signature_of(PyObject* dict);
  bool read_counter(Source& source, int c, PyObject* value);
  void lay_out(Row& row, const Source& source);
  void make_states(PyObject* state);
  void sort_waves();
  void run();
  void prepare_rows(size_t first, size_t last);
  void write_counters(size_t first, size_t last);

  // "param 3 of group 0 ('layer.weight')"
  std::string label(int group, int position) const;
  [[noreturn]] void fail(const Source& source, const std::string& what) const {
    throw std::runtime_error(label(source.group, source.position) + ": " + what);
  }

  std::string rule_name_;
  py::dict defaults_;
  const Rule* rule_;
  GroupNames names_;
  std::vector<Ref> keys_;
  std::deque<Signature> signatures_;
  std::vector<Group> groups_;
  std::vector<Slot> slots_;
  std::vector<std::pair<PyObject*, PyObject*>> order_;  // optimizer.state, entry by entry
  double multiplier_ = 1;                                // 1 / grad_scale
  bool skipped_ = false, busy_ = false;
  PyObject* group_list_ = nullptr;  // borrowed, valid during a step

  std::vector<Row> rows_;
  std::vector<Source> sources_;
  std::vector<size_t> new_states_;  // rows whose state has yet to be made
  std::vector<TensorImpl*> written_;
  std::deque<Layout> layouts_;
  std::vector<Prepared> prepared_;
};

inline std::string Plan::label(int group, int position) const {
  std::string text = "param " + std::to_string(position) + " of group " + std::to_string(group);
  PyObject* dict = PySequence_Fast_GET_ITEM(group_list_, group);
  PyObject* names = PyDict_GetItemString(dict, "param_names");
  if (names && PyList_Check(names) && position < PyList_GET_SIZE(names))
    text += " ('" + std::string(py::str(PyList_GET_ITEM(names, position))) + "')";
  return text;
}

inline void Plan::read_groups(PyObject* groups) {
  if (!is_sequence(groups)) throw py::type_error("optimizer.param_groups is not a list");
  group_list_ = groups;
  groups_.resize(PySequence_Fast_GET_SIZE(groups));
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    Group& group = groups_[g];
    group.read(PySequence_Fast_GET_ITEM(groups, g), names_, g);
    const bool equal = g > 0 && groups_[g - 1].sign == group.sign &&
                       std::equal(group.hypers.begin(), group.hypers.begin() + rule_->hypers, groups_[g - 1].hypers.begin());
    group.same_as = equal ? groups_[g - 1].same_as : g;
  }
}

inline bool Plan::slots_match(PyObject* state) const {
  if (PyDict_GET_SIZE(state) != static_cast<Py_ssize_t>(order_.size())) return false;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  for (const auto& entry : order_)
    if (!PyDict_Next(state, &position, &key, &value) || key != entry.first || value != entry.second) return false;
  size_t slot = 0;
  for (const Group& group : groups_) {
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(group.params);
    if (slot + count > slots_.size()) return false;
    for (Py_ssize_t i = 0; i < count; ++i)
      if (PySequence_Fast_GET_ITEM(group.params, i) != slots_[slot++].param) return false;
  }
  return slot == slots_.size();
}

inline void Plan::rebuild_slots(PyObject* state) {
  std::unordered_map<PyObject*, PyObject*> dict_of;
  std::unordered_map<PyObject*, int> seen;
  order_.clear();
  slots_.clear();
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(state, &position, &key, &value);) {
    order_.emplace_back(key, value);
    dict_of[key] = value;
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(groups_[g].params); ++i) {
      PyObject* param = PySequence_Fast_GET_ITEM(groups_[g].params, i);
      if (!THPVariable_Check(param)) throw py::type_error(label(g, i) + " is not a tensor");
      const auto found = dict_of.find(param);
      slots_.push_back({param, found == dict_of.end() ? nullptr : found->second, nullptr, seen[param]++});
    }
  }
}

// Adds a row for a param that has a gradient; false if no engine takes it.
inline bool Plan::collect(int group, int slot, int position) {
  TensorImpl* param = unpack(slots_[slot].param).unsafeGetTensorImpl();
  const at::Tensor& grad_tensor = param->grad();
  if (!grad_tensor.defined()) return true;
  TensorImpl* grad = grad_tensor.unsafeGetTensorImpl();
  // torch refuses inference tensors outside inference mode only after it has written them.
  if (param->is_inference()) param->bump_version();
  if (groups_[group].differentiable || !plain(*param)) return false;

  Row row{};
  Source source{};
  source.param = param;
  source.grad = grad;
  source.group = group;
  source.slot = slot;
  source.position = position;
  if (!plain(*grad)) {
    if (!dispatches_to_python(*grad) && !grad->is_sparse() && grad->device() != param->device())
      fail(source, "its gradient is on " + grad->device().str() + ", the param on " + param->device().str() + "; move one");
    return false;
  }
  if (!storage_of(*param, row.param_dtype))
    fail(source, dtype_name(*param) + " params cannot be stepped; convert it to float32, float64, bfloat16 or float16");
  if (!storage_of(*grad, row.grad_dtype) || is_complex(*grad) != is_complex(*param))
    fail(source, "its gradient is " + dtype_name(*grad) + ", the param " + dtype_name(*param) + "; convert the gradient");
  if (grad->sizes() != param->sizes())
    fail(source, "its gradient has shape " + shape_of(*grad) + ", the param " + shape_of(*param) + "; set .grad anew");

  row.variant = static_cast<uint8_t>(rule_->variant(groups_[group].hypers.data()));
  row.numel = param->numel() * (is_complex(*param) ? 2 : 1);
  if (!read_state(row, source)) return false;
  rows_.push_back(row);
  sources_.push_back(source);
  if (source.first) new_states_.push_back(rows_.size() - 1);
  return true;
}

inline const Plan::Signature* Plan::signature_of(PyObject* dict) {
  Signature signature;
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(dict, &position, &key, &value);) {
    int role = -1;
    for (size_t i = 0; i < keys_.size(); ++i) {
      const int known = static_cast<int>(i);
      if (PyUnicode_Check(key) && PyUnicode_Compare(key, keys_[i].ptr()) == 0)
        role = known < rule_->states ? known : kMaxStates + known - rule_->states;
    }
    signature.keys.push_back(borrow(key));
    signature.role.push_back(role);
  }
  for (const Signature& known : signatures_)
    if (known.keys.size() == signature.keys.size() &&
        std::equal(known.keys.begin(), known.keys.end(), signature.keys.begin(),
                   [](const Ref& a, const Ref& b) { return a.is(b); }))
      return &known;
  return &signatures_.emplace_back(std::move(signature));
}

// False where torch's own step has to make sense of the tensor.
inline bool Plan::read_counter(Source& source, int c, PyObject* value) {
  const std::string name = std::string("its state '") + rule_->counter_names[c] + "' ";
  if (!THPVariable_Check(value)) fail(source, name + "is not a tensor; assign torch.tensor(float(value))");
  TensorImpl* counter = unpack(value).unsafeGetTensorImpl();
  if (counter->is_inference()) counter->bump_version();
  if (counter->numel() != 1) fail(source, name + "has shape " + shape_of(*counter) + "; assign torch.tensor(float(value))");
  const at::ScalarType dtype = counter->dtype().toScalarType();
  if (!plain(*counter) || (dtype != at::kFloat && dtype != at::kDouble)) return false;
  source.counter[c] = {counter->mutable_data(), dtype};
  written_.push_back(counter);
  return true;
}

inline bool Plan::read_state(Row& row, Source& source) {
  Slot& slot = slots_[source.slot];
  PyObject* found[kMaxStates + kMaxCounters] = {};
  if (slot.state && !PyDict_Check(slot.state)) fail(source, "its entry in optimizer.state is not a dict");
  if (slot.state && PyDict_GET_SIZE(slot.state) > 0) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    bool matches = slot.signature && static_cast<Py_ssize_t>(slot.signature->keys.size()) == PyDict_GET_SIZE(slot.state);
    for (size_t i = 0; matches && PyDict_Next(slot.state, &position, &key, &value); ++i) {
      matches = key == slot.signature->keys[i].ptr();
      if (matches && slot.signature->role[i] >= 0) found[slot.signature->role[i]] = value;
    }
    if (!matches) {
      slot.signature = signature_of(slot.state);
      position = 0;
      for (size_t i = 0; PyDict_Next(slot.state, &position, &key, &value); ++i)
        if (slot.signature->role[i] >= 0) found[slot.signature->role[i]] = value;
    }
  }

  int needed = rule_->counters, present = 0;
  const char* missing = nullptr;
  for (int c = 0; c < rule_->counters; ++c) {
    if (!found[kMaxStates + c]) missing = rule_->counter_names[c];
    else ++present;
  }
  for (int k = 0; k < rule_->states; ++k) {
    if (!rule_->keeps(row.variant, k)) continue;
    ++needed;
    if (!found[k] || found[k] == Py_None) missing = rule_->state_names[k];
    else ++present;
  }
  source.first = needed > 0 && present == 0;
  if (source.first) return true;
  if (present < needed)
    throw py::key_error(label(source.group, source.position) + ": its state lacks '" + missing +
                        "'; delete optimizer.state[param] to start anew, or load a state made with these options");

  for (int c = 0; c < rule_->counters; ++c)
    if (!read_counter(source, c, found[kMaxStates + c])) return false;
  for (int k = 0; k < rule_->states; ++k) {
    if (!rule_->keeps(row.variant, k)) continue;
    const std::string name = std::string("its state '") + rule_->state_names[k] + "' ";
    if (!THPVariable_Check(found[k])) fail(source, name + "is not a tensor");
    TensorImpl* state = unpack(found[k]).unsafeGetTensorImpl();
    if (state->is_inference()) state->bump_version();
    if (!plain(*state)) {
      if (state->is_inference() || dispatches_to_python(*state)) return false;
      fail(source, name + "is not a dense tensor on " + source.param->device().str() + " but on " + state->device().str() +
                       "; move it to the param's device");
    }
    if (state->sizes() != source.param->sizes())
      fail(source, name + "has shape " + shape_of(*state) + ", the param " + shape_of(*source.param) +
                       "; the checkpoint is of another model");
    if (!storage_of(*state, row.state_dtype[k]) || is_complex(*state) != is_complex(*source.param))
      fail(source, name + "is " + dtype_name(*state) + ", the param " + dtype_name(*source.param) + "; convert it");
    source.state[k] = state;
  }
  return true;
}

// The layout of a row, where its operands are not all dense in one order.
inline void Plan::lay_out(Row& row, const Source& source) {
  row.layout = nullptr;
  const TensorImpl* operands[kOperands] = {source.param, source.grad};
  int slots[kOperands] = {kParam, kGrad}, count = 2;
  bool same = source.param->is_non_overlapping_and_dense() && source.grad->strides() == source.param->strides();
  for (int k = 0; k < rule_->states; ++k) {
    if (!source.state[k]) continue;
    slots[count] = kState + k;
    operands[count++] = source.state[k];
    same = same && source.state[k]->strides() == source.param->strides();
  }
  if (same) return;

  Layout merged;
  if (!make_layout(operands, count, merged))
    fail(source, "its memory cannot be walked in " + std::to_string(kMaxDims) + " dimensions; make the param contiguous");
  for (int o = 0; o < count; ++o) {
    for (int d = 0; d < merged.dims; ++d) {
      if (o != kGrad && merged.stride[o][d] == 0 && merged.size[d] > 1) {
        fail(source, "unsupported operation: more than one element of the written-to tensor refers to a single memory "
                     "location. Please clone() the tensor before performing the operation.");
      }
    }
  }
  if (row.numel == 0 || dense(merged, count)) return;
  Layout& layout = layouts_.emplace_back(merged);
  for (int o = 0; o < count; ++o) std::copy_n(merged.stride[o], merged.dims, layout.stride[slots[o]]);
  row.layout = &layout;
}

}  // namespace fusedopt
