#include "scaling.h"

#include "group.h"

namespace fusedopt {
namespace {

// A number of Python's; `absent` where there is none, or where only a device has it, and then `there` is its tensor.
double read_number(PyObject* found, const char* name, double absent, at::Tensor& there) {
  there = at::Tensor();
  const Number number = found ? to_number(found, name) : Number{absent};
  if (!number.device) return number.value;
  there = unpack(found);
  return absent;
}

Number bring(const at::Tensor& tensor, int device, at::Tensor& held) {
  Number number;
  if (!tensor.defined()) return number;
  held = tensor.to(torch_device(device), /*non_blocking=*/true);
  number.device = held.unsafeGetTensorImpl()->data();
  storage_of(*held.unsafeGetTensorImpl(), number.dtype);
  return number;
}

}  // namespace

void Scaling::read(PyObject* found_inf, PyObject* divisor) {
  told_ = at::Tensor();
  skips_ = read_number(found_inf, "found_inf", 0, found_inf_) != 0;
  divisor_on_host_ = read_number(divisor, "grad_scale", 1, divisor_);
  divide_by(divisor_on_host_);
}

void Scaling::fetch() {
  if (divisor_.defined()) divide_by(divisor_.item().toDouble());
  if (found_inf_.defined()) skips_ = found_inf_.item().toDouble() != 0;
  release();
}

Scaling::There Scaling::on(const cuda::Place& place, bool capturing) {
  There there;
  there.divisor = bring(divisor_, place.device, there.divisor_held);
  there.found_inf = bring(found_inf_, place.device, there.found_inf_held);
  if (found_inf_.defined()) {
    choose_flag(place, capturing);
    there.skipped = static_cast<uint32_t*>(data_of(*told_.unsafeGetTensorImpl()));
  }
  return there;
}

// Where a step on this stream says whether it was skipped. The memory is the stream's, and its kernels write it before
// they read it, so it begins as it may; a captured step's is the graph's pool's, as whatever torch allocates there.
void Scaling::choose_flag(const cuda::Place& place, bool capturing) {
  constexpr size_t kKept = 16;
  const auto kept = std::find_if(flags_.begin(), flags_.end(), [&](const Flag& flag) {
    return flag.place.device == place.device && flag.place.stream == place.stream;
  });
  if (!capturing && kept != flags_.end()) {
    told_ = kept->memory;
    return;
  }
  told_ = at::empty({}, at::TensorOptions(torch_device(place.device)).dtype(at::kInt));
  keep_for_replays(capturing, told_);
  if (capturing) return;
  if (flags_.size() == kKept) flags_.pop_front();
  flags_.push_back({place, told_});
}

py::object Scaling::told() const { return told_.defined() ? wrap(told_) : py::bool_(skips_); }

}  // namespace fusedopt
