// The norm of the gradients that a plan has found for its step: one look at them serves for both.
#include "../host/dtensor.h"
#include "../host/plan.h"
#include "engines.h"

namespace fusedopt {

void Plan::find_norm_shares() {
  NormShares& its = norm_;
  bool same = its.specs.size() == slots_.size();
  its.specs.resize(slots_.size());
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    PyObject* spec = spec_of(slots_[slot].param);
    if (its.specs[slot].ptr() == spec) continue;
    same = false;
    its.specs[slot] = spec ? borrow(spec) : Ref();
  }
  if (!same) {
    its.families.clear();
    its.family.assign(slots_.size(), 0);
    its.wide = false;
    EqualMeshes meshes;
    py::list told;
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
      std::vector<bool> divided;
      if (!its.specs[slot] || !divided_by(its.specs[slot].ptr(), divided)) continue;
      its.family[slot] = 1 + find_family(its.families, meshes, its.specs[slot].ptr(), divided);
      its.wide = its.wide || unpack(slots_[slot].param).scalar_type() == at::kDouble;
    }
    for (const NormShares::Family& family : its.families)
      told.append(py::make_tuple(family.mesh, py::tuple(py::cast(family.divided))));
    its.reduce = its.families.empty() ? Ref() : Ref(given_options_["norm"](told));
  }
  its.owed = !its.families.empty();
}

// On a device others do not look whether this process refuses.
void Plan::refuse_norm() noexcept {
  say_refused([this] {
    for (size_t slot = 0; slot < slots_.size(); ++slot)
      if (norm_.family[slot] && !local_tensor(slots_[slot].param).is_cpu()) return;
    norm_.reduce(py::cast(std::vector<double>(norm_.families.size() + 1)), true);
  });
}

// Sets what this step's gradients are divided by; false where a norm takes more than rows on the host, which Grads
// knows.
bool Plan::clip(Clipping& clipping) {
  const auto ordinary = [&](const Pass& pass) { return pass.device == kHost && pass.from == kHost && pass.wave == 0; };
  looks_once_ = !rule_->indexed && std::all_of(passes_.begin(), passes_.end(), ordinary);
  if (!looks_once_ || passes_.empty() || scaling_.divisor_known_there_alone() || scaling_.known_there_alone())
    return false;
  // What new states are made of is not held.
  if (norm_.owed && !new_states_.empty()) return false;
  bool wide = norm_.wide && norm_.owed;
  int64_t elements = 0;
  std::vector<std::vector<NormEntry>> families(norm_.families.size() + 1);
  families[0].reserve(norm_.owed ? 0 : count_);
  for (size_t i = 0; i < count_; ++i) {
    const TensorImpl& grad = *sources_[i].grad;
    if (!grad.is_non_overlapping_and_dense()) return false;
    std::vector<NormEntry>& entries = families[norm_.family[sources_[i].slot]];
    NormEntry entry = {};
    entry.numel = rows_[i].numel;
    entry.dtype = rows_[i].grad_dtype;
    wide = wide || entry.dtype == Dtype::f64;
    if (entry.numel == 0) continue;
    entry.data = const_cast<void*>(read_of(grad, grad.dtype().itemsize()));
    entry.chunks_end = entry.chunks() + (entries.empty() ? 0 : entries.back().chunks_end);
    elements += entry.numel;
    entries.push_back(entry);
  }
  const ClipRequest request = {{Term::square, 2}, clipping.max_norm, wide};
  const int threads = at::get_num_threads();
  std::vector<double> totals(families.size());
  const auto measure = [&] {
    for (size_t f = 0; f < families.size(); ++f)
      if (const auto& entries = families[f]; !entries.empty())
        totals[f] = cpu::measure(entries.data(), entries.data() + entries.size(), request.order, threads);
  };
  const auto measure_together = [&] {
    measure();
    const py::gil_scoped_acquire acquire;
    norm_.owed = false;
    // Who refuses its step here takes no part in what would follow either.
    const bool owes_sums = std::exchange(owes_sums_, false);
    totals[0] = norm_.reduce(py::cast(totals), false).cast<double>();
    owes_sums_ = owes_sums;
  };
  // Other processes may take their time.
  if (norm_.owed)
    without_gil(std::max(elements, kReleaseGil), measure_together, &clipping.held);
  else if (new_states_.empty())
    without_gil(elements, measure, &clipping.held);
  else
    measure();
  const cpu::Clipped clipped = cpu::clip(totals[0], scaling_.divisor(), request);
  scaling_.divide_by(clipped.divisor);
  clipping.norm = scalar(clipped.norm, wide ? at::kDouble : at::kFloat);
  return true;
}

}  // namespace fusedopt
