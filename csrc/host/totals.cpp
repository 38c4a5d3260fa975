// Rules that add up over tensors of which processes have parts (LAMB, LARS, StableAdamW, and what is cautious): the
// sums of all params come together between the sweep that makes them and the one that uses them.
#include "plan.h"

namespace fusedopt {

// All params count, also those without a gradient here, so that every process has the same list.
void Plan::find_families() {
  owes_sums_ = false;
  const auto measures = [&](const Group& group) {
    return products_ || rule_->factored || rule_->measures(group.variant);
  };
  if (std::none_of(groups_.begin(), groups_.end(), measures)) {
    specs_.clear();
    families_.clear();
    return;
  }
  bool same = specs_.size() == slots_.size();
  specs_.resize(slots_.size());
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    PyObject* spec = measures(groups_[slots_[slot].group]) ? shard_of(slots_[slot].param).spec : nullptr;
    if (specs_[slot].ptr() == spec) continue;
    same = false;
    specs_[slot] = spec ? borrow(spec) : Ref();
  }
  if (!same) {
    families_.clear();
    family_device_ = kNowhere;
    in_a_family_.assign(slots_.size(), false);
    EqualMeshes meshes;
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
      PyObject* spec = specs_[slot].ptr();
      std::vector<bool> divided;
      if (!spec || is_whole(spec) || !divided_by(spec, divided)) continue;
      Family& family = families_[find_family(families_, meshes, spec, divided)];
      for (size_t d = 0; family.slots.empty() && d < divided.size(); ++d)
        if (divided[d]) family.processes *= family.mesh.attr("size")(d).cast<int64_t>();
      family.slots.push_back(static_cast<int>(slot));
      in_a_family_[slot] = true;
    }
    if (rule_->factored) find_wholes();
  }
  owes_sums_ = !families_.empty();
}

void Plan::check_family(const Source& source) {
  if (family_device_ != kNowhere && family_device_ != source.device)
    fail(
        source,
        "its rule adds up over a tensor of which this process has a shard, once a step for all of them, and others are "
        "on another device; step them with an optimizer of their own");
  family_device_ = source.device;
  if (slots_[source.slot].listed > 0)
    fail(source,
         "its rule adds up over a tensor of which this process has a shard, once a step, and it is in the list twice; "
         "list it once");
  if (source.device != kHost && (rule_->joint || rule_->factored))
    fail(source,
         "its rule adds up over a tensor of which this process has a shard, which it does on the CPU alone; replicate "
         "it, or use an optimizer that works element by element, as AdamW does, or by a tensor's norms, as LAMB does");
}

// Numbers added up over processes: `which` says for each family which of them are its own, and the last is nobody's but
// says whether a process refuses its step. Then this throws, on every process; what one that gives up itself is
// returned is undefined.
at::Tensor Plan::over_processes(const at::Tensor& every, const py::list& which) {
  owes_sums_ = false;
  const int64_t last = every.size(0) - 1;
  if (giving_up_) every.select(0, last).fill_(1);
  py::list families;
  for (size_t f = 0; f < families_.size(); ++f)
    families.append(py::make_tuple(families_[f].mesh, py::tuple(py::cast(families_[f].divided)), which[f]));
  const auto sum = given_options_["sum"](families, wrap(every));
  const at::Tensor made = unpack(sum.ptr());
  if (giving_up_) return {};
  if (made.select(0, last).sum().item().toDouble() != 0)
    throw std::runtime_error(std::string(kAnotherRefuses) + " here");
  return made.narrow(0, 0, last);
}

// Adds `totals`, [slot][sum], up over processes, in place; undefined: this one has nothing to add.
void Plan::exchange(at::Tensor totals) {
  const int64_t slots = static_cast<int64_t>(slots_.size());
  const int64_t sums = totals.defined() ? totals.size(1) : rule_->sums;
  const at::Tensor every =
      at::zeros({slots + 1, sums},
                at::TensorOptions(at::kDouble).device(totals.defined() ? totals.device() : c10::Device(at::kCPU)));
  if (totals.defined()) every.narrow(0, 0, slots).copy_(totals);
  py::list which;
  for (const Family& family : families_) which.append(py::cast(family.slots));
  const at::Tensor made = over_processes(every, which);
  if (totals.defined() && made.defined()) totals.copy_(made);
}

void Plan::give_up() noexcept {
  if (owes_sums_) say_refused([this] { come_without_rows(); });
}

void Plan::add_up_over_processes(const std::vector<cpu::ChunkSums>& of_rows, const Row* first) {
  const int64_t sums = rule_->sums;
  const at::Tensor totals = at::zeros({static_cast<int64_t>(slots_.size()), sums}, at::kDouble);
  double* numbers = totals.mutable_data_ptr<double>();
  const auto each = [&](auto&& f) {
    for (size_t i = 0; i < of_rows.size(); ++i)
      if (in_a_family_[first[i].slot])
        for (int64_t k = 0; k < of_rows[i].chunks * sums; ++k)
          f(of_rows[i].sums, k, numbers[first[i].slot * sums + k % sums]);
  };
  for (size_t i = 0; i < of_rows.size(); ++i)
    if (in_a_family_[first[i].slot] && of_rows[i].chunks > 0)
      rule_->add_up(of_rows[i].sums, of_rows[i].chunks, numbers + first[i].slot * sums);
  exchange(totals);
  // The first chunk stands for the tensor.
  each([&](double* parts, int64_t k, double total) { parts[k] = k < sums ? total : 0; });
}

}  // namespace fusedopt
