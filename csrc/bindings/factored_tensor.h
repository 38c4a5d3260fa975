// One param of Adafactor with its gradient and its state, checked and described. Included by bindings.cpp, after torch.
#pragma once

#include <string>

#include "../factored.h"
#include "run.h"

namespace fusedopt {

// torch's keys of a param's state.
struct FactoredKeys {
  Ref step = GroupNames::intern("step"), row_var = GroupNames::intern("row_var"),
      col_var = GroupNames::intern("col_var"), variance = GroupNames::intern("variance");
};

class FactoredSource {
 public:
  PyObject *object, *dict;  // the param, and its dict in optimizer.state or nullptr: borrowed
  at::Tensor param, grad;
  int group, wave = 0, device = kHost;
  bool first = true;  // it has no state yet
  Factored tensor = {};

  FactoredSource(PyObject* groups, int group, int position, PyObject* object, PyObject* dict)
      : object(object), dict(dict), group(group), groups_(groups), position_(position) {}

  // Checks all of it. Throws if it cannot be stepped; false if torch's own step has to.
  bool read(const FactoredKeys& keys);
  // Describes where the operands lie, once they all exist.
  void lay_out();
  void address(Factored& t) const;

  void make_state();
  void share_state(const FactoredSource& twin) {
    counter_ = twin.counter_;
    for (int k = 0; k < 2; ++k) states_[k] = twin.states_[k];
  }
  py::dict entry(const FactoredKeys& keys) const;

  void move_counter(const FactoredKeys& keys);
  Number count() const;
  void write_count(const Number& before) const;
  void bump_versions() const;

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(param_label(groups_, group, position_) + ": " + what);
  }
  bool read_state(const FactoredKeys& keys);
  bool read_counter(PyObject* value);
  // The shape of row_var, of col_var, or of the variance of a vector.
  std::vector<int64_t> state_shape(int k) const {
    std::vector<int64_t> shape = param.sizes().vec();
    if (factored()) shape[shape.size() - (k == 0 ? 1 : 2)] = 1;
    return shape;
  }
  bool factored() const { return param.dim() > 1; }
  int states() const { return factored() ? 2 : 1; }
  const char* state_name(int k) const { return !factored() ? "variance" : k == 0 ? "row_var" : "col_var"; }
  bool wide_counter() const { return counter_.scalar_type() == at::kDouble; }

  PyObject* groups_;
  int position_;
  at::Tensor counter_, states_[2];
};

inline bool FactoredSource::read(const FactoredKeys& keys) {
  param = unpack(object);
  grad = param.grad();
  TensorImpl &p = *param.unsafeGetTensorImpl(), &g = *grad.unsafeGetTensorImpl();
  device = device_index(p);
  if (!plain(p) || !plain(g) || g.device() != p.device()) {
    // torch refuses inference tensors outside inference mode only after it has written them.
    if (p.is_inference()) p.bump_version();
    if (plain(p) && !dispatches_to_python(g) && !g.is_sparse() && g.device() != p.device())
      fail("its gradient is on " + g.device().str() + ", the param on " + p.device().str() + "; move one");
    return false;
  }
  // torch has a sentence of its own for them.
  if (is_complex(p)) return false;
  Factored& t = tensor;
  if (!storage_of(p, t.operand[kFactoredParam].dtype))
    fail(dtype_name(p) + " params cannot be stepped; convert it to float32, float64, bfloat16 or float16");
  if (!storage_of(g, t.operand[kFactoredGrad].dtype) || is_complex(g))
    fail("its gradient is " + dtype_name(g) + ", the param " + dtype_name(p) + "; convert the gradient");
  if (!equal(g.sizes(), p.sizes()))
    fail("its gradient has shape " + shape_of(g) + ", the param " + shape_of(p) + "; set .grad anew");
  if (!read_state(keys)) return false;
  for (size_t d = 0; d < p.sizes().size(); ++d)
    if (p.sizes()[d] > 1 && p.strides()[d] == 0 && p.numel() > 0)
      fail(
          "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
          "Please clone() the tensor before performing the operation.");
  // A new state is dense, so that it adds no dimension.
  if (first) {
    int leads = 0;
    for (int64_t d = 0; d + 2 < param.dim(); ++d) leads += param.size(d) != 1;
    return leads <= kMaxLead;
  }
  lay_out();
  return tensor.leads <= kMaxLead;
}

inline bool FactoredSource::read_counter(PyObject* value) {
  if (!THPVariable_Check(value)) fail("its state 'step' is not a tensor; assign torch.tensor(float(value))");
  TensorImpl& counter = *unpack(value).unsafeGetTensorImpl();
  const at::ScalarType dtype = counter.dtype().toScalarType();
  const bool reachable = plain(counter) && (counter.is_cpu() || counter.device() == param.device());
  if (!reachable || counter.numel() != 1 || (dtype != at::kFloat && dtype != at::kDouble)) {
    if (counter.is_inference()) counter.bump_version();
    if (counter.numel() != 1)
      fail("its state 'step' has shape " + shape_of(counter) + "; assign torch.tensor(float(value))");
    return false;
  }
  counter_ = unpack(value);
  return true;
}

inline bool FactoredSource::read_state(const FactoredKeys& keys) {
  if (dict && !PyDict_Check(dict)) fail("its entry in optimizer.state is not a dict");
  const auto find = [&](const Ref& key) {
    PyObject* value = dict ? PyDict_GetItemWithError(dict, key.ptr()) : nullptr;
    return value == Py_None ? nullptr : value;
  };
  PyObject* step = find(keys.step);
  PyObject* found[] = {find(factored() ? keys.row_var : keys.variance), factored() ? find(keys.col_var) : nullptr};
  first = !step && !found[0] && !found[1];
  if (first) return true;
  const char* missing = step ? nullptr : "step";
  for (int k = 0; k < states(); ++k)
    if (!found[k]) missing = state_name(k);
  if (missing)
    throw py::key_error(param_label(groups_, group, position_) + ": its state lacks '" + missing +
                        "'; delete optimizer.state[param] to start anew, or load a state made for its shape");
  if (!read_counter(step)) return false;
  for (int k = 0; k < states(); ++k) {
    const auto name = [&] { return std::string("its state '") + state_name(k) + "' "; };
    if (!THPVariable_Check(found[k])) fail(name() + "is not a tensor");
    TensorImpl& state = *unpack(found[k]).unsafeGetTensorImpl();
    const bool reachable = plain(state) && state.device() == param.device();
    const bool fits = storage_of(state, tensor.operand[kRowVar + k].dtype) && !is_complex(state);
    if (!reachable || !fits || !equal(state.sizes(), state_shape(k))) {
      if (state.is_inference()) state.bump_version();
      if (state.is_inference() || dispatches_to_python(state)) return false;
      if (!reachable)
        fail(name() + "is not a dense tensor on " + param.device().str() + " but on " + state.device().str() +
             "; move it to the param's device");
      if (!fits)
        fail(name() + "is " + dtype_name(state) + ", the param " + dtype_name(*param.unsafeGetTensorImpl()) +
             "; convert it");
      std::ostringstream expected;
      expected << c10::IntArrayRef(state_shape(k));
      fail(name() + "has shape " + shape_of(state) + ", not " + expected.str() +
           "; the checkpoint is of another model");
    }
    for (size_t d = 0; d < state.sizes().size(); ++d)
      if (state.sizes()[d] > 1 && state.strides()[d] == 0) fail(name() + "shares memory among its elements; clone it");
    states_[k] = unpack(found[k]);
  }
  return true;
}

// As torch makes them.
inline void FactoredSource::make_state() {
  const bool wide = at::get_default_dtype_as_scalartype() == at::kDouble;
  counter_ = at::zeros({}, at::TensorOptions(at::kCPU).dtype(wide ? at::kDouble : at::kFloat));
  if (factored()) {
    for (int k = 0; k < 2; ++k) states_[k] = at::zeros(state_shape(k), param.options());
  } else {
    states_[0] = at::zeros_like(grad, param.options());
  }
}

inline py::dict FactoredSource::entry(const FactoredKeys& keys) const {
  const auto wrap = [](const at::Tensor& tensor) {
    return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
  };
  py::dict entry;
  entry[keys.step] = wrap(counter_);
  if (factored()) entry[keys.row_var] = wrap(states_[0]);
  if (factored()) entry[keys.col_var] = wrap(states_[1]);
  if (!factored()) entry[keys.variance] = wrap(states_[0]);
  return entry;
}

inline void FactoredSource::lay_out() {
  Factored& t = tensor;
  const at::Tensor* operands[] = {&param, &grad, &states_[0], &states_[1]};
  const int count = 2 + states(), dims = static_cast<int>(param.dim());
  for (int o = 2; o < count; ++o) storage_of(*operands[o]->unsafeGetTensorImpl(), t.operand[o].dtype);
  t.numel = param.numel();
  t.vector = !factored();
  t.matrices = 1;
  t.leads = 0;
  if (t.vector) {
    t.rows = (t.numel + kChunk - 1) / kChunk;
    t.cols = std::min<int64_t>(t.numel, kChunk);
    for (int o = 0; o < count; ++o) {
      t.operand[o].col = dims == 1 ? operands[o]->stride(0) : 1;
      t.operand[o].row = kChunk * t.operand[o].col;
    }
    return;
  }
  t.rows = param.size(-2);
  t.cols = param.size(-1);
  for (int o = 0; o < count; ++o) {
    t.operand[o].row = operands[o]->stride(-2);
    t.operand[o].col = operands[o]->stride(-1);
  }
  for (int d = 0; d + 2 < dims; ++d) {
    const int64_t size = param.size(d);
    t.matrices *= size;
    if (size == 1) continue;
    bool merges = t.leads > 0;
    for (int o = 0; merges && o < count; ++o) merges = t.operand[o].lead[t.leads - 1] == operands[o]->stride(d) * size;
    if (!merges && ++t.leads > kMaxLead) return;
    int64_t& merged = t.lead_size[t.leads - 1];
    merged = merges ? merged * size : size;
    for (int o = 0; o < count; ++o) t.operand[o].lead[t.leads - 1] = operands[o]->stride(d);
  }
}

inline void FactoredSource::address(Factored& t) const {
  if (t.numel == 0) return;
  t.operand[kFactoredParam].data = data_of(*param.unsafeGetTensorImpl());
  const TensorImpl& g = *grad.unsafeGetTensorImpl();
  t.operand[kFactoredGrad].data = const_cast<void*>(read_of(g, g.dtype().itemsize()));
  for (int k = 0; k < states(); ++k) t.operand[kRowVar + k].data = data_of(*states_[k].unsafeGetTensorImpl());
}

// To the param's device.
inline void FactoredSource::move_counter(const FactoredKeys& keys) {
  if (device == kHost || first || number_on_device(counter_)) return;
  // A param listed twice has one counter.
  PyObject* now = PyDict_GetItemWithError(dict, keys.step.ptr());
  if (now && number_on_device(unpack(now))) {
    counter_ = unpack(now);
    return;
  }
  counter_ = counter_.to(torch_device(device));
  const Ref value = py::reinterpret_steal<py::object>(THPVariable_Wrap(counter_));
  if (PyDict_SetItem(dict, keys.step.ptr(), value.ptr()) != 0) throw py::error_already_set();
}

inline Number FactoredSource::count() const {
  const TensorImpl& counter = *counter_.unsafeGetTensorImpl();
  const bool wide = wide_counter();
  void* data = data_of(counter);
  if (device != kHost && number_on_device(counter)) return {0, data, wide ? Dtype::f64 : Dtype::f32};
  return {wide ? *static_cast<double*>(data) : *static_cast<float*>(data)};
}

inline void FactoredSource::write_count(const Number& before) const {
  if (before.device) return;
  void* data = data_of(*counter_.unsafeGetTensorImpl());
  if (wide_counter())
    *static_cast<double*>(data) = before.value + 1;
  else
    *static_cast<float*>(data) = static_cast<float>(before.value + 1);
}

inline void FactoredSource::bump_versions() const {
  for (const at::Tensor* tensor : {&param, &counter_, &states_[0], &states_[1]})
    if (tensor->defined()) tensor->unsafeGetTensorImpl()->bump_version();
}

}  // namespace fusedopt
