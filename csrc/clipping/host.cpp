// The gradients of a list of params as Python hands it over: their norm, and their scaling.
#include "../host/bind.h"
#include "../host/dtensor.h"
#include "../host/group.h"
#include "../host/overlap.h"
#include "engines.h"

namespace fusedopt {

namespace {

NormOrder norm_order(double p) {
  if (!(p > 0)) throw py::value_error("norm_type is " + std::to_string(p) + "; give a positive number or inf");
  const Term term = p == 2 ? Term::square : p == 1 ? Term::absolute : std::isinf(p) ? Term::largest : Term::power;
  return {term, p};
}

// A number for a kernel on `device`; `keep` holds it there.
Number number_for(int device, const py::object& value, const std::string& what, at::Tensor& keep) {
  Number number = to_number(value.ptr(), what);
  if (!number.device) return number;
  keep = unpack(value.ptr());
  if (device == kHost) return {keep.item().toDouble()};
  keep = keep.to(torch_device(device), /*non_blocking=*/true);
  number.device = keep.unsafeGetTensorImpl()->data();
  return number;
}

class Grads {
 public:
  // Of tensors, or of the params in param_groups; with `values` the tensors themselves stand for their gradients.
  Grads(const py::object& params, bool values) : values_(values) {
    const Ref list = py::reinterpret_steal<py::object>(PySequence_Fast(params.ptr(), "parameters are not a list"));
    if (!list) throw py::error_already_set();
    // A dispatch mode (FakeTensorMode, make_fx, a flop counter) must see operations.
    observed_ = c10::impl::TorchDispatchModeTLS::any_modes_set();
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.ptr()); ++i) {
      PyObject* item = PySequence_Fast_GET_ITEM(list.ptr(), i);
      if (!PyDict_Check(item)) {
        add(item, [&] { return "parameters[" + std::to_string(i) + "]"; });
        continue;
      }
      PyObject* group = PyDict_GetItemString(item, "params");
      if (!is_sequence(group))
        throw py::type_error("param_groups[" + std::to_string(i) +
                             "]['params'] is not a list; assign a list of tensors");
      for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(group); ++k)
        add(PySequence_Fast_GET_ITEM(group, k),
            [&] { return param_label(list.ptr(), static_cast<int>(i), static_cast<int>(k)); });
    }
  }
  Grads(const Grads&) = delete;

  // Gradients that no engine takes.
  const py::list& leftover() const { return leftover_; }
  // Whether torch would compute the norm in double.
  bool wide() const { return wide_; }
  bool empty() const { return held_.empty(); }

  // Whether these are the same gradients, and nobody has written to them.
  bool same_as(const Grads& other) const {
    if (held_.size() != other.held_.size() || !leftover_.empty() || !other.leftover_.empty()) return false;
    for (size_t i = 0; i < held_.size(); ++i) {
      const Held &mine = held_[i], &its = other.held_[i];
      if (!mine.tensor.is_same(its.tensor) || mine.memory.unsafeGetStorageImpl() != its.memory.unsafeGetStorageImpl() ||
          mine.data != its.data || mine.version != its.version)
        return false;
    }
    return true;
  }

  // The sum of |g|^p over those that the engines take, or the largest |g|, as a double where the first of them is. Of
  // DTensors it has nothing.
  py::object measure(double p) { return wrap(total_of(kOrdinary, norm_order(p))); }

  // The same of what this process has of DTensors: (mesh, which of its dimensions divide them, total) for all that one
  // mesh divides alike. Params without a gradient count as zeros, so that all processes have the same list.
  py::list measure_shards(double p) {
    py::list measured;
    for (size_t f = 0; f < families_.size(); ++f)
      measured.append(py::make_tuple(families_[f].mesh, py::tuple(py::cast(families_[f].divided)),
                                     wrap(total_of(static_cast<int>(f), norm_order(p)))));
    return measured;
  }
  bool sharded() const { return !families_.empty(); }

  // Multiplies them, those in the list twice two times.
  void scale(const py::object& coefficient) {
    for (const Part& part : parts_)
      for (const NormEntry& entry : part.entries)
        for (int d = 0; entry.layout && d < entry.layout->dims; ++d)
          if (entry.layout->stride[kParam][d] == 0 && entry.layout->size[d] > 1)
            throw std::runtime_error(
                "a gradient cannot be scaled in place: more than one of its elements refers to a single memory "
                "location. Please clone() the gradient before.");
    for (Part& part : parts_) {
      at::Tensor keep;
      const Number by = number_for(part.device, coefficient, "the coefficient", keep);
      for (const std::vector<NormEntry>& wave : waves_of(part)) scale_wave(part.device, wave, by);
    }
    for (const Held& held : held_) {
      held.tensor.unsafeGetTensorImpl()->bump_version();
      if (held.whole.defined()) held.whole.unsafeGetTensorImpl()->bump_version();
    }
  }

 private:
  // What lives cannot have its address taken by another: equal addresses are equal things.
  struct Held {
    at::Tensor tensor;
    c10::Storage memory;
    const void* data;
    uint32_t version;
    at::Tensor whole;  // the DTensor that it is the local tensor of
  };
  // DTensors that one mesh divides alike, by their place in a list, and those that are none.
  struct Family {
    Ref mesh;
    std::vector<bool> divided;
    int device = kHost;
  };
  static constexpr int kOrdinary = -1;
  struct Part {
    int family, device;
    std::vector<NormEntry> entries;
    std::vector<TensorImpl*> tensors;  // of the entries
    int64_t numel;
  };

  template <class Label>
  void add(PyObject* object, Label&& label) {
    if (!THPVariable_Check(object))
      throw py::type_error(label() + " is a " + std::string(py::str(py::type::of(object).attr("__name__"))) +
                           "; give tensors");
    const at::Tensor& tensor = unpack(object);
    const at::Tensor& grad = values_ ? tensor : tensor.unsafeGetTensorImpl()->grad();
    const int family = observed_ ? kOrdinary : family_of(object, tensor);
    if (!grad.defined()) return;
    const bool whole = family != kOrdinary;
    const Shard shard = whole ? shard_of(grad) : Shard();
    const bool readable = !observed_ && (!whole || (shard.local && same_layout(shard_of(object).spec, shard.spec)));
    if (!readable || !enter(whole ? unpack(shard.local) : grad, family, whole ? grad : at::Tensor()))
      leftover_.append(wrap(grad));
  }

  // Where a DTensor belongs; a sum that has yet to be made belongs nowhere.
  int family_of(PyObject* object, const at::Tensor& tensor) {
    if (!dispatches_to_python(*tensor.unsafeGetTensorImpl())) return kOrdinary;
    const Shard shard = shard_of(object);
    std::vector<bool> divided;
    if (!shard.local || !divided_by(shard.spec, divided)) return kOrdinary;
    wide_ = wide_ || tensor.scalar_type() == at::kDouble;
    const size_t known = families_.size(), f = find_family(families_, meshes_, shard.spec, divided);
    if (f == known) families_[f].device = device_index(*unpack(shard.local).unsafeGetTensorImpl());
    return static_cast<int>(f);
  }

  at::Tensor total_of(int family, const NormOrder& order) const {
    at::Tensor total;
    for (const Part& part : parts_) {
      if (part.family != family) continue;
      const at::Tensor one = part.entries.empty()   ? zero_on(part.device)
                             : part.device == kHost ? measure_on_host(part, order)
                                                    : measure_on_device(part, order);
      if (!total.defined())
        total = one;
      else if (order.term == Term::largest)
        total = total.maximum(one.to(total.device()));
      else
        total = total.add(one.to(total.device()));
    }
    if (total.defined()) return total;
    return zero_on(family != kOrdinary ? families_[family].device : parts_.empty() ? kHost : parts_[0].device);
  }

  static at::Tensor zero_on(int device) {
    return at::zeros({}, at::TensorOptions(torch_device(device)).dtype(at::kDouble));
  }

  // False if no engine can read it.
  bool enter(const at::Tensor& grad, int family, const at::Tensor& whole) {
    TensorImpl* impl = grad.unsafeGetTensorImpl();
    NormEntry entry = {};
    if (!plain(*impl) || !storage_of(*impl, entry.dtype)) return false;
    if (!impl->is_non_overlapping_and_dense()) {
      const TensorImpl* operands[] = {impl};
      Layout layout;
      if (!make_layout(operands, 1, layout)) return false;
      if (!dense(layout, 1)) entry.layout = &layouts_.emplace_back(layout);
    }
    wide_ = wide_ || entry.dtype == Dtype::f64;
    Part& part = part_of(family, device_index(*impl));
    if (impl->numel() > 0) {
      entry.complex = is_complex(*impl);
      entry.numel = impl->numel() * (entry.complex ? 2 : 1);
      entry.data = const_cast<void*>(read_of(*impl));
      entry.chunks_end = entry.chunks() + (part.entries.empty() ? 0 : part.entries.back().chunks_end);
      part.numel += entry.numel;
      part.entries.push_back(entry);
      part.tensors.push_back(impl);
    }
    held_.push_back({grad, impl->unsafe_storage(), entry.data, impl->version_counter().current_version(), whole});
    return true;
  }

  Part& part_of(int family, int device) {
    for (Part& part : parts_)
      if (part.family == family && part.device == device) return part;
    return parts_.emplace_back(Part{family, device, {}, {}, 0});
  }

  static at::Tensor measure_on_host(const Part& part, const NormOrder& order) {
    const int threads = at::get_num_threads();
    double total = 0;
    without_gil(part.numel, [&] {
      total = cpu::measure(part.entries.data(), part.entries.data() + part.entries.size(), order, threads);
    });
    return scalar(total, at::kDouble);
  }

  static at::Tensor measure_on_device(const Part& part, const NormOrder& order) {
    const OnDevice guard(part.device);
    const cuda::Place place = {part.device, current_stream(part.device)};
    const bool captured = cuda::ready_for_norm(place);
    const at::Tensor scratch = at::empty({cuda::norm_scratch(part.entries.back().chunks_end)},
                                         at::TensorOptions(torch_device(part.device)).dtype(at::kDouble));
    keep_for_replays(captured, scratch);
    cuda::measure(part.entries.data(), part.entries.data() + part.entries.size(), order,
                  scratch.mutable_data_ptr<double>(), place);
    return scratch.select(0, 0);
  }

  // Entries that may be scaled at once: a gradient that is listed again, or shares elements with one before, has to
  // wait for its turn, as in a loop over the list.
  static std::vector<std::vector<NormEntry>> waves_of(const Part& part) {
    std::vector<Extent> extents;
    for (size_t i = 0; i < part.tensors.size(); ++i) extents.push_back(extent_of(*part.tensors[i], i));
    std::vector<int> turns(part.tensors.size());
    take_turns(std::move(extents), [&](size_t i) -> int& { return turns[i]; });
    std::vector<std::vector<NormEntry>> waves;
    for (size_t i = 0; i < part.entries.size(); ++i) {
      NormEntry entry = part.entries[i];
      entry.data = data_of(*part.tensors[i]);
      waves.resize(std::max(waves.size(), turns[i] + size_t{1}));
      std::vector<NormEntry>& wave = waves[turns[i]];
      entry.chunks_end = entry.chunks() + (wave.empty() ? 0 : wave.back().chunks_end);
      wave.push_back(entry);
    }
    return waves;
  }

  static void scale_wave(int device, const std::vector<NormEntry>& wave, const Number& by) {
    const NormEntry *first = wave.data(), *last = first + wave.size();
    if (device == kHost) {
      const int threads = at::get_num_threads();
      without_gil(last[-1].chunks_end * kChunk, [&] { cpu::scale(first, last, by.value, threads); });
      return;
    }
    const OnDevice guard(device);
    const cuda::Place place = {device, current_stream(device)};
    cuda::ready_for_norm(place);
    cuda::scale(first, last, by, place);
  }

  bool values_, observed_ = false, wide_ = false;
  py::list leftover_;
  std::vector<Held> held_;
  std::vector<Part> parts_;
  std::vector<Family> families_;
  EqualMeshes meshes_;
  std::deque<Layout> layouts_;
};

// (norm, coefficient, divisor) of clip.h, where the total is: on the host a tensor and two numbers, on a device three
// tensors. `scale` is what gradients are to be divided by first, or None.
py::tuple clip_of(const py::object& total_object, double p, const py::object& scale, double max_norm, bool wide) {
  if (!THPVariable_Check(total_object.ptr())) throw py::type_error("the total is not a tensor");
  const at::Tensor& total = unpack(total_object.ptr());
  if (total.scalar_type() != at::kDouble || total.numel() != 1 || !plain(*total.unsafeGetTensorImpl()))
    throw py::value_error("the total is not one float64 on the CPU or a CUDA device");
  const ClipRequest request = {norm_order(p), max_norm, wide};
  const at::ScalarType dtype = wide ? at::kDouble : at::kFloat;
  const int device = device_index(*total.unsafeGetTensorImpl());
  at::Tensor keep;
  const Number by = scale.is_none() ? Number{1} : number_for(device, scale, "grad_scale", keep);
  if (device == kHost) {
    const cpu::Clipped result = cpu::clip(*total.const_data_ptr<double>(), by.value, request);
    return py::make_tuple(wrap(scalar(result.norm, dtype)), result.coefficient, result.divisor);
  }
  const OnDevice guard(device);
  const cuda::Place place = {device, current_stream(device)};
  const bool captured = cuda::ready_for_norm(place);
  const auto options = at::TensorOptions(torch_device(device));
  const at::Tensor norm = at::empty({}, options.dtype(dtype)), numbers = at::empty({2}, options.dtype(at::kDouble));
  keep_for_replays(captured, norm);
  keep_for_replays(captured, numbers);
  cuda::clip(total.const_data_ptr<double>(), by, request,
             {norm.unsafeGetTensorImpl()->mutable_data(), numbers.mutable_data_ptr<double>()}, place);
  return py::make_tuple(wrap(norm), wrap(numbers.select(0, 0)), wrap(numbers.select(0, 1)));
}

}  // namespace

void bind_clipping(py::module_& m) {
  py::class_<Grads>(m, "Grads", py::module_local(), "The gradients of a list of params: their norm and their scaling.")
      .def(py::init<py::object, bool>(), py::arg("params"), py::arg("values") = false)
      .def_property_readonly("leftover", &Grads::leftover)
      .def_property_readonly("wide", &Grads::wide)
      .def_property_readonly("empty", &Grads::empty)
      .def("same_as", &Grads::same_as, py::arg("other"))
      .def("measure", &Grads::measure, py::arg("norm_type"))
      .def_property_readonly("sharded", &Grads::sharded)
      .def("measure_shards", &Grads::measure_shards, py::arg("norm_type"))
      .def("scale", &Grads::scale, py::arg("coefficient"));
  m.def("clip", &clip_of, py::arg("total"), py::arg("norm_type"), py::arg("scale"), py::arg("max_norm"),
        py::arg("wide"));
}

}  // namespace fusedopt
