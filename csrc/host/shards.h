// Rows of DTensors: what this process has of param, gradient and states, which an element-wise rule steps as it steps
// ordinary tensors.
#pragma once

#include "roster.h"

namespace fusedopt {

// Puts the local tensors of a param and its gradient in their places, if they are DTensors of one layout.
inline void Roster::enter_shards(Source& source, const at::Tensor& grad) const {
  if (!dispatches_to_python(*source.param) && !dispatches_to_python(*source.grad)) return;
  if (rule_->indexed || groups_[slots_[source.slot].group].differentiable) return;
  PyObject* param = slots_[source.slot].param;
  const Shard its = shard_of(param), of_grad = shard_of(grad);
  if (!its.local || !of_grad.local || !why_not_as_shards(param, grad).empty()) return;
  source.sharded = true;
  source.spec = its.spec;
  if (of_grad.spec != its.spec) source.grad_spec = borrow(of_grad.spec);
  source.param = unpack(its.local).unsafeGetTensorImpl();
  source.grad = unpack(of_grad.local).unsafeGetTensorImpl();
}

// The same for a row that was entered before; false if a spec has changed since, or if it takes more than a look.
inline bool Roster::shards_as_before(const Source& source, TensorImpl*& param, TensorImpl*& grad) const {
  const Shard its = shard_at_a_look(slots_[source.slot].param);
  if (!its.local || its.spec != source.spec) return false;
  const Shard of_grad = shard_at_a_look(*grad);
  if (!of_grad.local || (of_grad.spec != its.spec && of_grad.spec != source.grad_spec.ptr())) return false;
  param = unpack(its.local).unsafeGetTensorImpl();
  grad = unpack(of_grad.local).unsafeGetTensorImpl();
  return true;
}

// Of a state that was checked before. A DTensor's own tensor is not looked at.
inline TensorImpl* Roster::known_tensor(const Source& source, PyObject* value) const {
  if (source.sharded)
    if (const Shard shard = shard_at_a_look(value); shard.local) return unpack(shard.local).unsafeGetTensorImpl();
  return unpack(value).unsafeGetTensorImpl();
}

// A state as the row's engine needs it. One in codes, and scales, are this process's own; factors all processes have.
inline TensorImpl* Roster::state_tensor(const Source& source, PyObject* value, const std::string& name,
                                        bool factor) const {
  TensorImpl* own = unpack(value).unsafeGetTensorImpl();
  const Shard shard = shard_of(value);
  if (shard.local) {
    if (factor && !is_whole(shard.spec))
      fail(source,
           name + "is placed as " + placements_of(shard.spec) + "; every process needs all of it: replicate it");
    if (!factor && !same_layout(source.spec, shard.spec) && !(is_whole(source.spec) && is_whole(shard.spec)))
      fail(source, name + "is placed as " + placements_of(shard.spec) + " and itself as " + placements_of(source.spec) +
                       "; redistribute() the state as the param is");
    return unpack(shard.local).unsafeGetTensorImpl();
  }
  if (!dispatches_to_python(*own) && own->dtype().itemsize() != 1)
    fail(source, name + "is no DTensor and the param is one; distribute the state as the param is");
  return own;
}

// The DTensors of a row themselves, for each.
template <class F>
void Roster::whole(const Source& source, F&& f) const {
  TensorImpl* param = unpack(slots_[source.slot].param).unsafeGetTensorImpl();
  f(param);
  if (clears_grad_) f(param->grad().unsafeGetTensorImpl());
  const auto other = [&](PyObject* object, const TensorImpl* local) {
    if (local && unpack(object).unsafeGetTensorImpl() != local) f(unpack(object).unsafeGetTensorImpl());
  };
  for (int k = 0; k < rule_->states; ++k) other(source.state_object[k], source.state[k]);
  for (int a = 0; a < kAttached; ++a) other(source.attached_object[a], source.attached[a]);
}

inline std::string Roster::why_left(const py::object& param) const {
  if (!THPVariable_Check(param.ptr())) return "";
  const at::Tensor& tensor = unpack(param.ptr());
  const at::Tensor& grad = tensor.unsafeGetTensorImpl()->grad();
  const bool ordinary = grad.defined() && !dispatches_to_python(*tensor.unsafeGetTensorImpl()) &&
                        !dispatches_to_python(*grad.unsafeGetTensorImpl());
  return !grad.defined() || ordinary ? "" : why_not_as_shards(param.ptr(), grad);
}

}  // namespace fusedopt
