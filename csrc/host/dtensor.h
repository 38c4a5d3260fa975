// What a plan knows of a DTensor: the tensor that this process has of it, and the spec that says of what whole it is
// which part.
#pragma once

#include <structmember.h>

#include "device.h"
#include "python.h"
#include "tensor.h"

namespace fusedopt {

// Where DTensor keeps both: in slots of the object, which can be read without a call of Python.
struct DTensorSlots {
  PyTypeObject* type = nullptr;
  Py_ssize_t local = 0, spec = 0;  // their offsets; 0 if this torch has them elsewhere
  Ref shard, replicate;            // the classes of its placements
};

// Never taken down: Python would be gone by then.
inline DTensorSlots& g_dtensor_slots = *new DTensorSlots();

__attribute__((noinline)) inline void find_dtensor_slots(DTensorSlots& slots) {
  // Who has a DTensor has imported this; to import it for others would take half a second.
  PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), "torch.distributed.tensor");
  const Ref type = module ? py::getattr(module, "DTensor", py::none()) : Ref(py::none());
  if (!PyType_Check(type.ptr())) return;
  const auto offset = [&](const char* name) -> Py_ssize_t {
    const Ref found = py::getattr(type, name, py::none());
    if (Py_TYPE(found.ptr()) != &PyMemberDescr_Type) return 0;
    const PyMemberDef* member = reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member;
    return member->type == T_OBJECT_EX ? member->offset : 0;
  };
  slots.local = offset("_local_tensor");
  slots.spec = offset("_spec");
  slots.shard = py::getattr(module, "Shard", py::none());
  slots.replicate = py::getattr(module, "Replicate", py::none());
  slots.type = reinterpret_cast<PyTypeObject*>(Ref(type).release().ptr());
}
inline const DTensorSlots& dtensor_slots() {
  if (!g_dtensor_slots.type) find_dtensor_slots(g_dtensor_slots);
  return g_dtensor_slots;
}

inline bool is_dtensor(PyObject* object) {
  const DTensorSlots& slots = dtensor_slots();
  return slots.type && PyObject_TypeCheck(object, slots.type);
}

// Borrowed from a DTensor, or null.
struct Shard {
  PyObject* local = nullptr;
  PyObject* spec = nullptr;
};

// The objects in a DTensor's slots, whatever they are.
inline Shard slots_of(const DTensorSlots& slots, PyObject* object) {
  const auto slot = [object](Py_ssize_t offset) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
  };
  return {slot(slots.local), slot(slots.spec)};
}

inline Shard shard_of(PyObject* object) {
  const DTensorSlots& slots = dtensor_slots();
  if (!is_dtensor(object) || slots.local == 0 || slots.spec == 0) return {};
  const Shard shard = slots_of(slots, object);
  return shard.local && shard.spec && THPVariable_Check(shard.local) ? shard : Shard();
}

// A tensor keeps its Python object for as long as it lives itself, and so what is borrowed from that.
inline Shard shard_of(const at::Tensor& tensor) { return tensor.defined() ? shard_of(wrap(tensor).ptr()) : Shard(); }

// The same of what nearly every DTensor is, by looks at types that lie beside what is read: no Python, and nothing
// counted, so that several threads may ask. Otherwise nothing.
inline Shard shard_at_a_look(PyObject* object) {
  const DTensorSlots& slots = dtensor_slots();
  if (Py_TYPE(object) != slots.type || slots.local == 0 || slots.spec == 0) return {};
  const Shard shard = slots_of(slots, object);
  return shard.local && shard.spec && THPVariable_CheckExact(shard.local) ? shard : Shard();
}

// The object that Python has of a tensor, borrowed; null if it has never seen it. Until torch 2.10 the function had
// another name.
template <class Slot>
auto object_in(const Slot& slot, int) -> decltype(slot.load_pyobj()) {
  return slot.load_pyobj();
}
template <class Slot>
auto object_in(const Slot& slot, long) -> decltype(slot._unchecked_untagged_pyobj()) {
  return slot._unchecked_untagged_pyobj();
}
inline Shard shard_at_a_look(const TensorImpl& impl) {
  PyObject* object = object_in(*impl.pyobj_slot(), 0);
  return object ? shard_at_a_look(object) : Shard();
}

// What this process has of a tensor: all of it, or of a DTensor its part.
inline const at::Tensor& local_tensor(PyObject* object) {
  const at::Tensor& tensor = unpack(object);
  if (!dispatches_to_python(*tensor.unsafeGetTensorImpl())) return tensor;
  const Shard shard = shard_of(object);
  return shard.local ? unpack(shard.local) : tensor;
}

// The spec of a DTensor, or null. An ordinary tensor costs a look at its keys.
inline PyObject* spec_of(PyObject* object) {
  return dispatches_to_python(*unpack(object).unsafeGetTensorImpl()) ? shard_of(object).spec : nullptr;
}

struct SpecNames {
  Ref mesh = intern("mesh"), placements = intern("placements"), order = intern("shard_order");
};
inline const SpecNames& spec_names() {
  static const SpecNames& names = *new SpecNames();
  return names;
}

// Whether two specs divide in the same way what is of the same shape.
inline bool same_layout(PyObject* a, PyObject* b) {
  if (a == b) return true;
  const SpecNames& names = spec_names();
  for (const Ref* name : {&names.mesh, &names.placements, &names.order}) {
    const Ref of_a = py::getattr(a, *name, py::none()), of_b = py::getattr(b, *name, py::none());
    if (!of_a.is(of_b) && !of_a.equal(of_b)) return false;
  }
  return true;
}

// Which dimensions of its mesh divide a DTensor; false if a sum over one of them has yet to be made.
inline bool divided_by(PyObject* spec, std::vector<bool>& dims) {
  const Ref placements = py::getattr(spec, spec_names().placements);
  const DTensorSlots& slots = dtensor_slots();
  for (const py::handle placement : placements) {
    // The two that nearly all of them are, by a look at their type.
    const bool known = py::type::of(placement).is(slots.shard) || py::type::of(placement).is(slots.replicate);
    if (!known && placement.attr("is_partial")().cast<bool>()) return false;
    dims.push_back(known ? py::type::of(placement).is(slots.shard) : !placement.attr("is_replicate")().cast<bool>());
  }
  return true;
}

// Whether every process has all of it.
inline bool is_whole(PyObject* spec) {
  const Ref mesh = py::getattr(spec, spec_names().mesh);
  std::vector<bool> divided;
  if (!divided_by(spec, divided)) return false;
  for (size_t d = 0; d < divided.size(); ++d)
    if (divided[d] && mesh.attr("size")(d).cast<int64_t>() != 1) return false;
  return true;
}

// Modules that were sharded one by one have equal meshes of their own: the first of those that are equal.
class EqualMeshes {
 public:
  Ref first(const Ref& mesh) {
    for (const auto& [known, first] : known_)
      if (known.is(mesh)) return first;
    for (const auto& [known, first] : known_)
      if (known.equal(mesh)) return known_.emplace_back(mesh, first).second;
    return known_.emplace_back(mesh, mesh).second;
  }

 private:
  std::vector<std::pair<Ref, Ref>> known_;  // and the first of those equal to it
};

// The place of a spec's family, which one mesh divides alike, in a list of them. A new one comes to its end.
template <class Family>
size_t find_family(std::vector<Family>& families, EqualMeshes& meshes, PyObject* spec,
                   const std::vector<bool>& divided) {
  const Ref mesh = meshes.first(py::getattr(spec, spec_names().mesh));
  size_t f = 0;
  while (f < families.size() && !(families[f].mesh.is(mesh) && families[f].divided == divided)) ++f;
  if (f == families.size()) families.push_back({mesh, divided});
  return f;
}

// The specs of a step's params, by slot, held so that none can be taken for another that has its address.
class Specs {
 public:
  // Reads them anew, of the slots that are `wanted`. Unless all are those of the last step, calls make(); what it
  // throws is found again in the next.
  template <class Slots, class F, class M>
  void read(const Slots& slots, F&& wanted, M&& make) {
    bool same = specs_.size() == slots.size();
    specs_.resize(slots.size());
    for (size_t slot = 0; slot < slots.size(); ++slot) {
      PyObject* spec = wanted(slots[slot]) ? spec_of(slots[slot].param) : nullptr;
      if (specs_[slot].ptr() == spec) continue;
      same = false;
      specs_[slot] = spec ? borrow(spec) : Ref();
    }
    if (same) return;
    try {
      make();
    } catch (...) {
      specs_.clear();
      throw;
    }
  }
  // Calls f(slot, family) for each in a family, a new one at the end of the list that begins empty; those of which
  // `counts` is not true are in none.
  template <class Family, class C, class F>
  void each_in_family(std::vector<Family>& families, C&& counts, F&& f) const {
    families.clear();
    EqualMeshes meshes;
    for (size_t slot = 0; slot < specs_.size(); ++slot) {
      PyObject* spec = specs_[slot].ptr();
      std::vector<bool> divided;
      if (spec && counts(spec) && divided_by(spec, divided)) f(slot, find_family(families, meshes, spec, divided));
    }
  }
  void clear() { specs_.clear(); }

 private:
  std::vector<Ref> specs_;
};

// "(Shard(dim=0),)"
inline std::string placements_of(PyObject* spec) { return py::str(py::getattr(spec, spec_names().placements)); }

// Why a param and its gradient, one of them a DTensor, cannot be stepped as what this process has of them; empty if
// they can.
inline std::string why_not_as_shards(PyObject* param, const at::Tensor& grad) {
  const Ref grad_object = wrap(grad);
  if (!is_dtensor(param) && !is_dtensor(grad_object.ptr())) return "";
  if (!is_dtensor(grad_object.ptr()))
    return "its gradient is no DTensor and it is one; distribute the gradient as the param is";
  if (!is_dtensor(param)) return "its gradient is a DTensor and it is none; assign the gradient's full_tensor()";
  const Shard its = shard_of(param), of_grad = shard_of(grad_object.ptr());
  if (!its.local || !of_grad.local) return "the installed torch keeps local tensors elsewhere than torch 2.6 to 2.15";
  if (!same_layout(its.spec, of_grad.spec) || !equal(unpack(param).sizes(), grad.sizes()))
    return "its gradient is placed as " + placements_of(of_grad.spec) + " and itself as " + placements_of(its.spec) +
           "; redistribute() the gradient as the param is";
  std::vector<bool> dims;
  if (!divided_by(its.spec, dims)) return "it is a sum that has not been made yet; redistribute() it";
  return "";
}

}  // namespace fusedopt
