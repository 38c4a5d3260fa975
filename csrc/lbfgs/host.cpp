// L-BFGS's sweeps as Python calls them: params and gradients in their tensors, everything else as flat tensors. Each
// call looks at all of them anew and writes nothing if one does not fit.
#include "../host/bind.h"
#include "../host/device.h"
#include "../host/overlap.h"
#include "../host/python.h"
#include "engines.h"
#include "gram.h"

namespace fusedopt::history {

namespace {

// Tensors as one vector, all of one real dtype and on one device.
class Parts {
 public:
  // What is added has to be of the dtype and on the device of `other`.
  void join(const Parts& other) {
    dtype_ = other.dtype_;
    device_ = other.device_;
    known_ = other.known_;
  }

  // Adds a tensor's elements in the order of its indices. False if no engine can walk it.
  bool add(TensorImpl* tensor, bool written) {
    if (!plain(*tensor)) return false;
    Dtype dtype;
    const int device = device_index(*tensor);
    if (!storage_of(*tensor, dtype) || element_size(dtype) < 4) return false;
    if (known_ && (dtype != dtype_ || device != device_)) return false;
    known_ = true;
    dtype_ = dtype;
    device_ = device;
    const int complex = fusedopt::is_complex(*tensor) ? 2 : 1;
    Layout layout;
    if (!in_index_order(*tensor, layout)) return false;
    int64_t at = -1;
    if (!dense(layout, 1)) {
      for (int d = 0; written && d < layout.dims; ++d)
        if (layout.stride[kParam][d] == 0 && layout.size[d] > 1) return false;
      at = static_cast<int64_t>(layouts_.size());
      layouts_.push_back(layout);
    }
    void* data = nullptr;
    if (tensor->numel() > 0) data = written ? first_of(*tensor) : const_cast<void*>(read_of(*tensor));
    segments_.push_back({data, numel_, at});
    held_.push_back(c10::intrusive_ptr<TensorImpl>::reclaim_copy(tensor));
    numel_ += tensor->numel() * complex;
    return true;
  }

  void add_zeros(int64_t numel) {
    segments_.push_back({nullptr, numel_, -1});
    numel_ += numel;
  }

  // Where the engine of the device reads it; while this lives.
  Scattered on_device() {
    const int64_t count = static_cast<int64_t>(segments_.size());
    segments_.push_back({nullptr, numel_, -1});
    if (device_ == kHost) return {segments_.data(), layouts_.data(), count};
    const int64_t first = segments_.size() * sizeof(Segment), bytes = first + layouts_.size() * sizeof(Layout);
    const at::Tensor host = at::empty({bytes}, at::TensorOptions(at::kCPU).dtype(at::kByte));
    std::memcpy(host.data_ptr(), segments_.data(), first);
    std::memcpy(static_cast<char*>(host.data_ptr()) + first, layouts_.data(), bytes - first);
    table_ = host.to(torch_device(device_));
    const char* there = static_cast<const char*>(table_.data_ptr());
    return {reinterpret_cast<const Segment*>(there), reinterpret_cast<const Layout*>(there + first), count};
  }

  int64_t numel() const { return numel_; }
  Dtype dtype() const { return dtype_; }
  int device() const { return device_; }
  const std::vector<c10::intrusive_ptr<TensorImpl>>& tensors() const { return held_; }

 private:
  // The tensor's dimensions in their own order, merged where elements that follow each other lie side by side.
  static bool in_index_order(const TensorImpl& tensor, Layout& layout) {
    layout.dims = 0;
    const bool complex = fusedopt::is_complex(tensor);
    bool fits = true;
    const auto add = [&](int64_t size, int64_t stride) {
      const int outer = layout.dims - 1;
      const bool merges = outer >= 0 && layout.stride[kParam][outer] == stride * size;
      fits = fits && (merges || layout.dims < kMaxDims);
      if (!fits) return;
      const int at = merges ? outer : layout.dims++;
      layout.size[at] = merges ? layout.size[at] * size : size;
      layout.stride[kParam][at] = stride;
    };
    for (size_t d = 0; d < tensor.sizes().size(); ++d)
      if (tensor.sizes()[d] != 1) add(tensor.sizes()[d], tensor.strides()[d] * (complex ? 2 : 1));
    if (complex || layout.dims == 0) add(complex ? 2 : 1, 1);
    return fits;
  }

  std::vector<Segment> segments_;
  std::vector<Layout> layouts_;
  std::vector<c10::intrusive_ptr<TensorImpl>> held_;
  at::Tensor table_;
  int64_t numel_ = 0;
  Dtype dtype_ = Dtype::f32;
  int device_ = kHost;
  bool known_ = false;  // the two
};

TensorImpl* impl_of(py::handle tensor) {
  if (!THPVariable_Check(tensor.ptr())) throw py::type_error("a tensor is wanted here");
  return unpack(tensor.ptr()).unsafeGetTensorImpl();
}

bool add_params(Parts& parts, const py::list& params, bool written) {
  for (const py::handle param : params)
    if (!parts.add(impl_of(param), written)) return false;
  return true;
}

bool add_grads(Parts& parts, const py::list& params) {
  for (const py::handle handle : params) {
    TensorImpl* param = impl_of(handle);
    const at::Tensor& grad = param->grad();
    const bool complex = fusedopt::is_complex(*param);
    if (!grad.defined()) {
      parts.add_zeros(param->numel() * (complex ? 2 : 1));
      continue;
    }
    TensorImpl* impl = grad.unsafeGetTensorImpl();
    if (fusedopt::is_complex(*impl) != complex || !equal(impl->sizes(), param->sizes()) || !parts.add(impl, false))
      return false;
  }
  return true;
}

bool is_flat(const TensorImpl& tensor, const Parts& parts) {
  Dtype dtype;
  return plain(tensor) && storage_of(tensor, dtype) && dtype == parts.dtype() && !fusedopt::is_complex(tensor) &&
         device_index(tensor) == parts.device() && tensor.dim() == 1 && tensor.numel() == parts.numel() &&
         tensor.is_contiguous();
}

// Whether two params have elements in common, which torch moves once for each.
bool share_memory(const std::vector<c10::intrusive_ptr<TensorImpl>>& params) {
  std::vector<Extent> extents;
  for (size_t i = 0; i < params.size(); ++i)
    if (params[i]->numel() > 0) extents.push_back(extent_of(*params[i], i));
  bool any = false;
  each_cluster(std::move(extents), [&](const std::vector<Extent>& cluster) {
    for (size_t k = 0; k < cluster.size(); ++k)
      for (size_t j = 0; j < k && !any; ++j) any = meet(cluster[j], cluster[k]);
  });
  return any;
}

// How many real numbers the params hold; -1 if the engines have no place for them, or for one of the flat tensors.
int64_t fits(const py::list& params, const py::list& flats) {
  Parts parts;
  if (params.empty() || !add_params(parts, params, true) || share_memory(parts.tensors())) return -1;
  for (const py::handle flat : flats)
    if (!THPVariable_Check(flat.ptr()) || !is_flat(*impl_of(flat), parts)) return -1;
  return parts.numel() > 0 ? parts.numel() : -1;
}

// Whether all gradients are such as the sweeps can read.
bool grads_fit(const py::list& params) {
  Parts both;
  return add_params(both, params, false) && add_grads(both, params);
}

// One sweep: its scattered vector and its flat ones.
class Sweep {
 public:
  // Over the params' gradients, or over `flat` in their place.
  Sweep(const py::list& params, const py::object& flat) {
    if (!add_params(params_, params, false)) refuse();
    parts_.join(params_);
    if (flat.is_none() ? !add_grads(parts_, params) : !parts_.add(impl_of(flat), false)) refuse();
    if (parts_.numel() != params_.numel()) refuse();
    on_ = &params_;
  }
  // Over the params themselves.
  explicit Sweep(const py::list& params) {
    if (!add_params(parts_, params, true)) refuse();
    on_ = &parts_;
  }

  const void* read(const py::object& tensor) { return tensor.is_none() ? nullptr : read_of(*flat(tensor)); }
  void* write(const py::object& tensor) {
    if (tensor.is_none()) return nullptr;
    written_.push_back(flat(tensor));
    return first_of(*written_.back());
  }

  Scattered scattered() { return parts_.on_device(); }
  int64_t numel() const { return on_->numel(); }
  Dtype dtype() const { return on_->dtype(); }
  bool wide() const { return dtype() == Dtype::f64; }

  // Calls host(threads) or device(place); what they write has changed then.
  template <class Host, class Device>
  void run(bool params_too, Host&& host, Device&& device) {
    // Callers hold the flat tensors.
    if (on_->device() != kHost) {
      const OnDevice guard(on_->device());
      const cuda::Place place = {on_->device(), current_stream(on_->device())};
      if (cuda::ready_for_history(place))
        throw std::runtime_error(
            "Attempting CUDA graph capture of step() for an instance of LBFGS, which decides on the host, by sums that "
            "it waits for, how long it goes on: step outside of the capture");
      device(place);
    } else {
      const int threads = at::get_num_threads();
      without_gil(numel(), [&] { host(threads); });
    }
    for (TensorImpl* tensor : written_) tensor->bump_version();
    if (!params_too) return;
    for (const auto& tensor : parts_.tensors()) tensor->bump_version();
  }

  // A sweep with results, which are waited for on a device.
  template <class Job, class Host, class Device>
  std::vector<double> sum(const Job& job, int results, Host&& host, Device&& device) {
    std::vector<double> out;
    run(
        false, [&](int threads) { out = host(job, wide(), threads); },
        [&](const cuda::Place& place) {
          const auto options = at::TensorOptions(torch_device(on_->device())).dtype(at::kDouble);
          const at::Tensor sums = at::empty({(1 + chunks_of(job.numel)) * results}, options);
          double* at = static_cast<double*>(sums.data_ptr());
          device(job, wide(), at + results, at, place);
          {
            const py::gil_scoped_release release;
            cuda::synchronize(place);
          }
          const at::Tensor there = sums.narrow(0, 0, results).to(at::kCPU);
          const double* first = static_cast<const double*>(there.data_ptr());
          out.assign(first, first + results);
        });
    return out;
  }

 private:
  [[noreturn]] static void refuse() {
    throw std::runtime_error(
        "a param has changed its dtype, device, shape or layout while the closure ran; make a new optimizer");
  }

  TensorImpl* flat(const py::object& tensor) {
    TensorImpl* impl = impl_of(tensor);
    if (!is_flat(*impl, *on_))
      throw py::value_error("L-BFGS keeps contiguous vectors of " + std::to_string(numel()) + " elements, not " +
                            shape_of(*impl) + " of " + dtype_name(*impl));
    return impl;
  }

  Parts params_, parts_;
  const Parts* on_;
  std::vector<TensorImpl*> written_;
};

// The results of history::Products.
std::vector<double> products(const py::list& params, const py::object& grad, const py::object& previous,
                             const py::object& direction, double t, const py::list& vectors) {
  Sweep sweep(params, grad);
  std::vector<const void*> list;
  for (const py::handle vector : vectors) list.push_back(sweep.read(py::reinterpret_borrow<py::object>(vector)));
  const Products job = {sweep.numel(),
                        sweep.scattered(),
                        sweep.read(previous),
                        sweep.read(direction),
                        t,
                        list.data(),
                        static_cast<int>(list.size())};
  return sweep.sum(job, job.results(), cpu::products, cuda::products);
}

// The results of history::Direction; dirs and steps are lists of (vector, factor).
std::vector<double> direction(const py::list& params, const py::object& grad, const py::object& previous,
                              const py::object& direction, const py::object& y, const py::object& s, double t,
                              const py::list& dirs, const py::list& steps, double scale) {
  Sweep sweep(params, grad);
  const auto terms = [&](const py::list& given) {
    std::vector<Term> list;
    for (const py::handle term : given) {
      const auto [vector, factor] = term.cast<std::pair<py::object, double>>();
      list.push_back({sweep.read(vector), factor});
    }
    return list;
  };
  const std::vector<Term> before = terms(dirs), after = terms(steps);
  const Direction job = {sweep.numel(),
                         sweep.scattered(),
                         sweep.write(previous),
                         sweep.write(direction),
                         sweep.write(y),
                         sweep.write(s),
                         t,
                         before.data(),
                         after.data(),
                         static_cast<int>(before.size()),
                         static_cast<int>(after.size()),
                         scale};
  return sweep.sum(job, job.kResults, cpu::direction, cuda::direction);
}

void move(const py::list& params, const py::object& direction, double t, const py::object& origin, bool fetch) {
  Sweep sweep(params);
  const Move job = {sweep.numel(), sweep.scattered(), sweep.read(direction), t, sweep.write(origin), fetch};
  sweep.run(
      true, [&](int threads) { cpu::move(job, sweep.wide(), threads); },
      [&](const cuda::Place& place) { cuda::move(job, sweep.wide(), place); });
}

void gather(const py::list& params, const py::object& out) {
  Sweep sweep(params, py::none());
  const Gather job = {sweep.numel(), sweep.scattered(), sweep.write(out)};
  sweep.run(
      false, [&](int threads) { cpu::gather(job, sweep.wide(), threads); },
      [&](const cuda::Place& place) { cuda::gather(job, sweep.wide(), place); });
}

}  // namespace

}  // namespace fusedopt::history

namespace fusedopt {

void bind_lbfgs(py::module_& m) {
  using namespace history;
  py::class_<Gram>(m, "Gram", py::module_local(), "The inner products of an L-BFGS history, and the recursion on them.")
      .def(py::init<>())
      .def("__len__", &Gram::pairs)
      .def("clear", &Gram::clear)
      .def("drop_oldest", &Gram::drop_oldest)
      .def("append", &Gram::append, py::arg("sy"), py::arg("yy"))
      .def("ys", &Gram::ys)
      .def_property_readonly("scale", &Gram::scale)
      .def("recur", [](const Gram& gram, const std::vector<double>& sg, const std::vector<double>& yg) {
        if (sg.size() != gram.pairs() || yg.size() != gram.pairs()) throw py::value_error("one product for each pair");
        std::vector<double> alpha, factor;
        gram.recur(sg, yg, alpha, factor);
        return std::make_pair(alpha, factor);
      });
  m.def("lbfgs_fits", &fits, py::arg("params"), py::arg("flats"));
  m.def("lbfgs_grads_fit", &grads_fit, py::arg("params"));
  m.def("lbfgs_products", &products, py::arg("params"), py::arg("grad"), py::arg("previous"), py::arg("direction"),
        py::arg("t"), py::arg("vectors"));
  m.def("lbfgs_direction", &direction, py::arg("params"), py::arg("grad"), py::arg("previous"), py::arg("direction"),
        py::arg("y"), py::arg("s"), py::arg("t"), py::arg("dirs"), py::arg("steps"), py::arg("scale"));
  m.def("lbfgs_move", &move, py::arg("params"), py::arg("direction"), py::arg("t"), py::arg("origin"),
        py::arg("fetch"));
  m.def("lbfgs_gather", &gather, py::arg("params"), py::arg("out"));
}

}  // namespace fusedopt
