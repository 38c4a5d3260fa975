// What a plan does for the extras of its rows. Included by bindings.cpp, after torch.
#pragma once

#include "plan.h"

namespace fusedopt {

// Whether this param has a tensor of that kind.
inline bool Plan::wants(const Row& row, const Source& source, int at) const {
  if (at >= kScaleTensor) return source.state[at - kScaleTensor] && is_coded(row.state_dtype[at - kScaleTensor]);
  if (at == kAverageTensor) return true;
  return in_16_bits(*source.param) != (options_.pair == Pair::copy && !options_.master);
}

// Finds the tensors that a row has beside its rule's, and notes those that have yet to be made.
inline Plan::Found Plan::read_attached(Row& row, Source& source, PyObject* const* found) {
  if (options_.pair == Pair::remainder && source.param->dtype().toScalarType() == at::kHalf)
    fail(source, "master_weights='remainder' keeps the low half of a float32 beside a bfloat16, and it is " +
                     dtype_name(*source.param) + "; use master_weights='float32'");
  for (const Options::Key& key : options_.keys) {
    const int at = key.at;
    if (!wants(row, source, at)) continue;
    PyObject* value = found[at];
    const std::string name = "its state '" + std::string(py::str(key.name)) + "' ";
    if (!value || value == Py_None) {
      if (at >= kScaleTensor) fail(source, name + "is missing, without which codes mean nothing; load the state anew");
      // Who copies go to is the caller's to say.
      if (at != kPartnerTensor || options_.pair != Pair::copy || options_.master) source.missing |= 1u << at;
      continue;
    }
    if (!THPVariable_Check(value)) fail(source, name + "is not a tensor");
    TensorImpl* tensor = unpack(value).unsafeGetTensorImpl();
    if (!plain(*tensor) || tensor->device() != source.param->device())
      fail(source,
           name + "is not a dense tensor on " + source.param->device().str() + "; move it to the param's device");
    const at::ScalarType type = tensor->dtype().toScalarType();
    if (at >= kScaleTensor) {
      if (type != at::kFloat || tensor->numel() != blocks_of(*source.param) || !tensor->is_contiguous())
        fail(source, name + "is not a contiguous float32 tensor of " + std::to_string(blocks_of(*source.param)) +
                         " scales, one for each " + std::to_string(kCodeBlock) + " elements");
    } else {
      if (!equal(tensor->sizes(), source.param->sizes()))
        fail(source, name + "has shape " + shape_of(*tensor) + ", the param " + shape_of(*source.param));
      Dtype dtype;
      const bool fits = at == kAverageTensor               ? storage_of(*tensor, dtype)
                        : options_.master                  ? type == at::kFloat
                        : options_.pair == Pair::remainder ? type == at::kShort
                                                           : in_16_bits(*tensor);
      if (!fits || is_complex(*tensor) != is_complex(*source.param))
        fail(source, name + "is " + dtype_name(*tensor) + ", which does not go with a param that is " +
                         dtype_name(*source.param));
    }
    source.attached[at] = tensor;
    source.attached_object[at] = value;
  }
  return Found::row;
}

// Gives row `at` its extras, if it has any.
inline void Plan::outfit(size_t at) {
  Row& row = rows_[at];
  Source& source = sources_[at];
  row.extras = nullptr;
  if (!options_.any() && !clears_grad_) return;
  Extras& extras = extras_[at];
  extras = Extras{};
  row.extras = &extras;
  extras.stochastic = options_.stochastic;
  extras.clears_grad = clears_grad_;
  if (const TensorImpl* partner = source.attached[kPartnerTensor]) {
    extras.pair = options_.pair;
    const TensorImpl& stored = options_.master ? *source.param : *partner;
    if (options_.pair != Pair::remainder) storage_of(stored, extras.partner_dtype);
    if (options_.master) storage_of(*partner, row.param_dtype);
  }
  if (source.attached[kAverageTensor]) storage_of(*source.attached[kAverageTensor], extras.average_dtype);
  extras.new_average = source.missing >> kAverageTensor & 1;
}

// Makes what is missing of a row whose states exist by now.
inline void Plan::make_attached(size_t i, py::dict& entry) {
  Source& source = sources_[i];
  const at::Tensor param = unpack(slots_[source.slot].param).detach();
  for (const Options::Key& key : options_.keys) {
    const int at = key.at;
    if (at >= kScaleTensor ? !source.first || !wants(rows_[i], source, at) : !(source.missing >> at & 1)) continue;
    at::Tensor made;
    if (at >= kScaleTensor) {
      made = at::zeros({blocks_of(*source.param)}, param.options().dtype(at::kFloat));
    } else if (at == kAverageTensor) {
      const at::ScalarType own = param.scalar_type();
      made = at::zeros_like(param, param.options().dtype(in_16_bits(*source.param) ? at::kFloat : own));
    } else if (options_.master) {
      made = param.to(at::kFloat);
    } else {
      made = at::zeros_like(param,
                            param.options().dtype(options_.pair == Pair::remainder ? at::kShort : param.scalar_type()));
    }
    entry[key.name] = py::reinterpret_steal<py::object>(THPVariable_Wrap(made));
    source.attached[at] = made.unsafeGetTensorImpl();
  }
}

// The tensor that a row's param is computed from.
inline TensorImpl* Plan::exact_param(const Source& source) const {
  TensorImpl* partner = source.attached[kPartnerTensor];
  return options_.master && partner ? partner : source.param;
}

inline bool Plan::attached_as_before(const Source& source) const {
  for (const Options::Key& key : options_.keys) {
    TensorImpl* before = source.attached[key.at];
    if (!before) continue;
    const TensorImpl* now = unpack(source.attached_object[key.at]).unsafeGetTensorImpl();
    if (now != before || now->key_set() != source.keys || now->dtype() != source.attached_type[key.at]) return false;
    if (key.at >= kScaleTensor
            ? now->numel() != blocks_of(*source.param) || !now->is_contiguous()
            : !equal(now->sizes(), source.param->sizes()) || !equal(now->strides(), source.param->strides()))
      return false;
    if (source.device != kHost && device_index(*now) != source.device) return false;
  }
  return true;
}

inline void Plan::refuse_leftover(const py::list& leftover) const {
  const auto first = leftover[0].cast<py::tuple>();
  const int group = first[0].cast<int>();
  PyObject *param = first[1].cast<py::list>()[0].ptr(), *params = groups_[group].params;
  int position = 0;
  while (PySequence_Fast_GET_ITEM(params, position) != param) ++position;
  throw std::runtime_error(label(group, position) +
                           ": with its gradient it can only take torch's own step, which knows no state_dtype, "
                           "master_weights, rounding or ema_decay; construct the optimizer without these for it");
}

// What changes from step to step.
inline void Plan::set_draws(double ema_decay) {
  if (!options_.any()) return;
  step_.key = stream(options_.seed, draws_);
  step_.average_weight = 1 - ema_decay;
  for (size_t i = 0; i < count_; ++i) {
    if (!rows_[i].extras) continue;
    extras_[i].key = step_.key;
    extras_[i].average_weight = step_.average_weight;
  }
}

}  // namespace fusedopt
