// The norm of the gradients that a plan has found for its step: one look at them serves for both.
#include "../host/dtensor.h"
#include "../host/plan.h"
#include "engines.h"

namespace fusedopt {

void NormShares::find(const Roster& roster, const py::dict& given) {
  const std::vector<Roster::Slot>& slots = roster.slots();
  const auto all = [](const auto&) { return true; };
  specs_.read(slots, all, [&] {
    of_slot_.assign(slots.size(), 0);
    wide_ = false;
    specs_.each_in_family(families_, all, [&](size_t slot, size_t f) {
      of_slot_[slot] = 1 + f;
      wide_ = wide_ || unpack(slots[slot].param).scalar_type() == at::kDouble;
    });
    py::list told;
    for (const Family& family : families_)
      told.append(py::make_tuple(family.mesh, py::tuple(py::cast(family.divided))));
    reduce_ = families_.empty() ? Ref() : Ref(given["norm"](told));
  });
  owed_ = !families_.empty();
}

double NormShares::reduce(const std::vector<double>& totals) {
  owed_ = false;
  return reduce_(py::cast(totals), false).cast<double>();
}

void NormShares::refuse(const Roster& roster) noexcept {
  const py::error_scope pending;
  try {
    for (size_t slot = 0; slot < of_slot_.size(); ++slot)
      if (of_slot_[slot] && !local_tensor(roster.slots()[slot].param).is_cpu()) return;
    reduce_(py::cast(std::vector<double>(count())), true);
  } catch (const std::exception&) {
    // What is to be told is why this process refuses.
  }
}

// Sets what this step's gradients are divided by; false where a norm takes more than rows on the host, which Grads
// knows.
bool Plan::clip(Clipping& clipping) {
  const auto ordinary = [&](const Pass& pass) { return pass.device == kHost && pass.from == kHost && pass.wave == 0; };
  const auto& passes = roster_.passes();
  looks_once_ = !rule().indexed && std::all_of(passes.begin(), passes.end(), ordinary);
  if (!looks_once_ || passes.empty() || scaling_.divisor_known_there_alone() || scaling_.known_there_alone())
    return false;
  // What new states are made of is not held.
  const bool makes_states = !roster_.new_states().empty();
  if (norm_.owed() && makes_states) return false;
  bool wide = norm_.wide() && norm_.owed();
  int64_t elements = 0;
  std::vector<std::vector<NormEntry>> families(norm_.count());
  families[0].reserve(norm_.owed() ? 0 : roster_.count());
  for (size_t i = 0; i < roster_.count(); ++i) {
    const TensorImpl& grad = *roster_.source(i).grad;
    if (!grad.is_non_overlapping_and_dense()) return false;
    std::vector<NormEntry>& entries = families[norm_.of_slot(roster_.source(i).slot)];
    NormEntry entry = {};
    entry.numel = roster_.row(i).numel;
    entry.dtype = roster_.row(i).grad_dtype;
    wide = wide || entry.dtype == Dtype::f64;
    if (entry.numel == 0) continue;
    entry.data = const_cast<void*>(read_of(grad));
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
    // Who refuses its step here takes no part in what would follow either.
    families_.owe_after([&] { totals[0] = norm_.reduce(totals); });
  };
  // Other processes may take their time.
  if (norm_.owed())
    without_gil(std::max(elements, kReleaseGil), measure_together, &clipping.held);
  else if (!makes_states)
    without_gil(elements, measure, &clipping.held);
  else
    measure();
  const cpu::Clipped clipped = cpu::clip(totals[0], scaling_.divisor(), request);
  scaling_.divide_by(clipped.divisor);
  clipping.norm = scalar(clipped.norm, wide ? at::kDouble : at::kFloat);
  return true;
}

}  // namespace fusedopt
