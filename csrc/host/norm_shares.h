// Which params have a part in the norm that all processes make together.
#pragma once

#include "dtensor.h"
#include "roster.h"

namespace fusedopt {

// DTensors that one mesh divides alike are a family. All params count, also those without a gradient here, so that
// every process has the same list.
class NormShares {
 public:
  // Finds them among a step's params. `given` has what Python does for them: "norm".
  void find(const Roster& roster, const py::dict& given);
  // Ordinary params, and then the families.
  size_t count() const { return families_.size() + 1; }
  size_t of_slot(int slot) const { return of_slot_[slot]; }
  // Whether a param of a family is in float64.
  bool wide() const { return wide_; }
  // Whether this step has yet to take part.
  bool owed() const { return owed_; }
  void settle() { owed_ = false; }
  // The norm's total, of what each of count() has here. Throws, on every process, if one refuses its step.
  double reduce(const std::vector<double>& totals);
  // Takes part as one that refuses its step. On a device the others do not look whether it does.
  void refuse(const Roster& roster) noexcept;

 private:
  struct Family {
    Ref mesh;
    std::vector<bool> divided;
  };
  std::vector<Family> families_;
  std::vector<size_t> of_slot_;
  Specs specs_;  // what they were made of
  bool wide_ = false, owed_ = false;
  Ref reduce_;  // of Python's, made for them: what processes have, and whether this one refuses its step
};

}  // namespace fusedopt
