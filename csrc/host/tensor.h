// What a plan needs to know of a tensor, read from the live object at every step.
#pragma once

#include "torch.h"

#include "../step.h"

namespace fusedopt {

using c10::TensorImpl;

inline const at::Tensor& unpack(PyObject* object) { return THPVariable_Unpack(object); }
inline py::object wrap(const at::Tensor& tensor) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor)); }
inline at::Tensor tensor_of(const TensorImpl* impl) {
  return at::Tensor(c10::intrusive_ptr<TensorImpl>::reclaim_copy(const_cast<TensorImpl*>(impl)));
}

// The keys of an ordinary dense CPU tensor: no subclass that dispatches, no meta or sparse tensor, no lazy conjugate,
// no inference tensor, no functional wrapper. All of those differ in their key set, so one comparison is the whole
// test.
inline const c10::DispatchKeySet g_plain_keys = at::empty({0}, at::TensorOptions(at::kCPU).dtype(at::kFloat)).key_set();

// Shapes and strides have few entries: a loop beats the call to memcmp that == makes.
inline bool equal(c10::IntArrayRef a, c10::IntArrayRef b) {
  if (a.size() != b.size()) return false;
  for (size_t d = 0; d < a.size(); ++d)
    if (a[d] != b[d]) return false;
  return true;
}

// Few tensors begin within their storage.
inline int64_t bytes_before(const TensorImpl& impl) {
  const int64_t offset = impl.storage_offset();
  return __builtin_expect(offset == 0, 1) ? 0 : offset * static_cast<int64_t>(impl.dtype().itemsize());
}
// The first element of a tensor that has one, for reading
inline const void* read_of(const TensorImpl& impl) {
  return static_cast<const char*>(impl.unsafe_storage().unsafeGetStorageImpl()->data()) + bytes_before(impl);
}
// and for writing: a copy-on-write storage is copied now.
inline void* first_of(const TensorImpl& impl) {
  return static_cast<char*>(impl.unsafe_storage().unsafeGetStorageImpl()->mutable_data()) + bytes_before(impl);
}
// The same of any tensor.
inline void* data_of(const TensorImpl& impl) { return impl.numel() == 0 ? nullptr : first_of(impl); }

inline bool dispatches_to_python(const TensorImpl& impl) { return impl.key_set().has(c10::DispatchKey::Python); }

// A number on the host, as a tensor of float or double.
inline at::Tensor scalar(double value, at::ScalarType dtype) {
  const at::Tensor tensor = at::empty({}, at::TensorOptions(at::kCPU).dtype(dtype));
  if (dtype == at::kDouble)
    *tensor.mutable_data_ptr<double>() = value;
  else
    *tensor.mutable_data_ptr<float>() = static_cast<float>(value);
  return tensor;
}

// The storage type of a tensor's real numbers; false if the engines have none.
inline bool storage_of(const TensorImpl& impl, Dtype& dtype) {
  switch (c10::typeMetaToScalarType(impl.dtype())) {
    case at::kFloat:
    case at::kComplexFloat:
      dtype = Dtype::f32;
      return true;
    case at::kDouble:
    case at::kComplexDouble:
      dtype = Dtype::f64;
      return true;
    case at::kBFloat16:
      dtype = Dtype::bf16;
      return true;
    case at::kHalf:
    case at::kComplexHalf:
      dtype = Dtype::f16;
      return true;
    default:
      return false;
  }
}

inline bool is_complex(const TensorImpl& impl) { return c10::isComplexType(c10::typeMetaToScalarType(impl.dtype())); }

inline std::string shape_of(const TensorImpl& impl) {
  std::ostringstream out;
  out << impl.sizes();
  return out.str();
}

// As Python prints it: "torch.int64".
inline std::string dtype_name(const TensorImpl& impl) { return py::str(wrap(tensor_of(&impl)).attr("dtype")); }

// One walk for operands of one shape but different strides. Dimensions are sorted by the first operand's strides, its
// memory order, and merged where every operand allows it, so that all kinds of dense tensors end as one dimension of
// stride 1. Complex numbers are pairs of reals. False if more dimensions remain than a Layout holds.
inline bool make_layout(const TensorImpl* const* operands, int count, Layout& layout) {
  struct Dim {
    int64_t size;
    int64_t stride[kOperands];
  };
  std::vector<Dim> dims;
  const bool complex = is_complex(*operands[0]);
  for (size_t d = 0; d < operands[0]->sizes().size(); ++d) {
    Dim dim{operands[0]->sizes()[d], {}};
    for (int o = 0; o < count; ++o) dim.stride[o] = operands[o]->strides()[d] * (complex ? 2 : 1);
    if (dim.size != 1) dims.push_back(dim);
  }
  std::stable_sort(dims.begin(), dims.end(), [](const Dim& a, const Dim& b) { return a.stride[0] > b.stride[0]; });
  if (complex || dims.empty()) {
    Dim dim{complex ? 2 : 1, {}};
    std::fill_n(dim.stride, kOperands, 1);
    dims.push_back(dim);
  }
  layout.dims = 0;
  for (const Dim& dim : dims) {
    const int outer = layout.dims - 1;
    bool merges = outer >= 0;
    for (int o = 0; merges && o < count; ++o) merges = layout.stride[o][outer] == dim.stride[o] * dim.size;
    if (!merges && layout.dims == kMaxDims) return false;
    const int at = merges ? outer : layout.dims++;
    layout.size[at] = merges ? layout.size[at] * dim.size : dim.size;
    for (int o = 0; o < count; ++o) layout.stride[o][at] = dim.stride[o];
  }
  return true;
}

inline bool dense(const Layout& layout, int operands) {
  if (layout.dims != 1) return false;
  for (int o = 0; o < operands; ++o)
    if (layout.stride[o][0] != 1 && layout.size[0] != 1) return false;
  return true;
}

}  // namespace fusedopt
