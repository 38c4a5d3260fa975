// Rules that add up over tensors of which processes have parts (LAMB, LARS, StableAdamW, and what is cautious): the
// sums of all params come together between the sweep that makes them and the one that uses them.
#include "families.h"

namespace fusedopt {

bool Roster::in_parts(const Source& source) const { return families_.has(source.slot); }

void Families::find(const Roster& roster) {
  owes_sums_ = false;
  const Rule& rule = roster.rule();
  const std::vector<Roster::Slot>& slots = roster.slots();
  const auto measures = [&](const Group& group) {
    return roster.products() || rule.factored || rule.measures(group.variant);
  };
  if (std::none_of(roster.groups().begin(), roster.groups().end(), measures)) {
    specs_.clear();
    families_.clear();
    of_slot_.clear();
    return;
  }
  const auto has_sums = [&](const Roster::Slot& slot) { return measures(roster.groups()[slot.group]); };
  const auto in_parts = [](PyObject* spec) { return !is_whole(spec); };
  specs_.read(slots, has_sums, [&] {
    device_ = kNowhere;
    of_slot_.assign(slots.size(), false);
    specs_.each_in_family(families_, in_parts, [&](size_t slot, size_t f) {
      Family& family = families_[f];
      for (size_t d = 0; family.slots.empty() && d < family.divided.size(); ++d)
        if (family.divided[d]) family.processes *= family.mesh.attr("size")(d).cast<int64_t>();
      family.slots.push_back(static_cast<int>(slot));
      of_slot_[slot] = true;
    });
    if (rule.factored) find_wholes(roster);
  });
  owes_sums_ = !families_.empty();
}

void Families::check(const Roster& roster) {
  if (!owes_sums_) return;
  for (size_t i = 0; i < roster.count(); ++i) {
    const Roster::Source& source = roster.source(i);
    if (!of_slot_[source.slot]) continue;
    if (device_ != kNowhere && device_ != source.device)
      roster.fail(
          source,
          "its rule adds up over a tensor of which this process has a shard, once a step for all of them, and others "
          "are on another device; step them with an optimizer of their own");
    device_ = source.device;
    if (roster.slot(source).wave > 0)
      roster.fail(source,
                  std::string("its rule adds up over a tensor of which this process has a shard, once a step, "
                              "and it ") +
                      (roster.slot(source).listed > 0 ? "is in the list twice; list it once"
                                                      : "shares memory with another param; give it memory of its own"));
  }
}

// Numbers added up over processes: `which` says for each family which of them are its own, and the last is nobody's but
// says whether a process refuses its step. Then this throws, on every process; what one that gives up itself is
// returned is undefined.
at::Tensor Families::over_processes(const at::Tensor& every, const py::list& which) {
  owes_sums_ = false;
  const int64_t last = every.size(0) - 1;
  if (giving_up_) every.select(0, last).fill_(1);
  py::list families;
  for (size_t f = 0; f < families_.size(); ++f)
    families.append(py::make_tuple(families_[f].mesh, py::tuple(py::cast(families_[f].divided)), which[f]));
  const auto sum = given_["sum"](families, wrap(every));
  const at::Tensor made = unpack(sum.ptr());
  if (giving_up_) return {};
  if (made.select(0, last).sum().item().toDouble() != 0)
    throw std::runtime_error(std::string(kAnotherRefuses) + " here");
  return made.narrow(0, 0, last);
}

void Families::exchange(const Roster& roster, at::Tensor totals) {
  const int64_t slots = static_cast<int64_t>(roster.slots().size());
  const int64_t sums = totals.defined() ? totals.size(1) : roster.rule().sums;
  const at::Tensor every =
      at::zeros({slots + 1, sums},
                at::TensorOptions(at::kDouble).device(totals.defined() ? totals.device() : c10::Device(at::kCPU)));
  if (totals.defined()) every.narrow(0, 0, slots).copy_(totals);
  py::list which;
  for (const Family& family : families_) which.append(py::cast(family.slots));
  const at::Tensor made = over_processes(every, which);
  if (totals.defined() && made.defined()) totals.copy_(made);
}

}  // namespace fusedopt
