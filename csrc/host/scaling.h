// Whether a step takes place, and what gradients are divided by: what a GradScaler has found and scaled by, and
// clipping's divisor.
#pragma once

#include "../cuda/engine.h"
#include "device.h"

namespace fusedopt {

class Scaling {
 public:
  // Either may be null. What is in device memory stays there unread, for as long as nothing on the host depends on it.
  void read(PyObject* found_inf, PyObject* divisor);
  // Reads it after all, which waits for the device.
  void fetch();
  // What it has been told is over with the step.
  void release() { found_inf_ = divisor_ = at::Tensor(); }

  // As far as the host knows.
  bool skips() const { return skips_; }
  double multiplier() const { return multiplier_; }
  // What gradients are divided by, and what they are to be divided by instead; only while no device alone knows it.
  double divisor() const { return divisor_on_host_; }
  void divide_by(double divisor) { multiplier_ = 1 / divisor; }
  bool divisor_known_there_alone() const { return divisor_.defined(); }
  // Whether a device alone knows if the step takes place.
  bool known_there_alone() const { return found_inf_.defined(); }

  // The same as kernels on a stream read it, while this lives.
  struct There {
    at::Tensor divisor_held, found_inf_held;
    Number divisor, found_inf;
    uint32_t* skipped = nullptr;  // where the device says whether the step was skipped, if it alone knows
  };
  There on(const cuda::Place& place, bool capturing);

  // Whether the last step was skipped, as Python is told: a bool, or a tensor on a device, zero if not.
  py::object told() const;

 private:
  void choose_flag(const cuda::Place& place, bool capturing);

  bool skips_ = false;
  double divisor_on_host_ = 1, multiplier_ = 1;
  at::Tensor found_inf_, divisor_;  // where the host has not read them
  // Where a stream's steps say whether they were skipped.
  struct Flag {
    cuda::Place place;
    at::Tensor memory;
  };
  std::list<Flag> flags_;
  at::Tensor told_;  // the flag that the last step wrote
};

}  // namespace fusedopt
