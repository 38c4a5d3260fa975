// The states of params that have none.
#include "codec.h"
#include "new_entries.h"
#include "roster.h"
#include "shards.h"

namespace fusedopt {

// The rule's states and counters of a new row.
void Roster::make_own(size_t i, py::dict& entry, StateScales& scales, bool device_decides) {
  const at::ScalarType default_dtype = at::get_default_dtype_as_scalartype() == at::kDouble ? at::kDouble : at::kFloat;
  Row& row = rows_[i];
  Source& source = sources_[i];
  const Slot& slot = slots_[source.slot];
  // As torch does: a counter that its fused step advances is a float32 on the param's device.
  const bool fused = groups_[slot.group].fused;
  Group group = groups_[slot.group];
  group.fetch_for(kHost, names_, PySequence_Fast_GET_ITEM(group_list_, slot.group));
  const std::array<double, kMaxHypers> hypers = group.numbers();
  const bool on_device = counts_on_device(source, device_decides);
  const Options& options = options_of(source);
  for (int c = 0; c < rule_->counters; ++c) {
    if (counts_in_python(source)) {
      entry[keys_[rule_->states + c].name] = py::int_(static_cast<int64_t>(rule_->initial_counter(hypers.data(), c)));
      source.counter_object[c] = PyDict_GetItem(entry.ptr(), keys_[rule_->states + c].name.ptr());
      continue;
    }
    const at::Tensor counter = at::full(
        {}, rule_->initial_counter(hypers.data(), c),
        at::TensorOptions(torch_device(on_device ? source.device : kHost)).dtype(fused ? at::kFloat : default_dtype));
    entry[keys_[rule_->states + c].name] = wrap(counter);
    source.counter[c] = counter.unsafeGetTensorImpl();
  }
  for (int k = 0; k < rule_->states; ++k) {
    if (!rule_->keeps(row.variant, k)) continue;
    const at::Tensor& param = unpack(slot.param);  // and what is made like a DTensor is one
    const double initial = rule_->initial_state(hypers.data(), k);
    at::Tensor value;
    if (options.codes(k, *source.param)) {
      row.state_dtype[k] = *options.state[k];
      const at::Tensor& local = local_tensor(slot.param);
      Coded coded = encode_constant(initial, row.state_dtype[k],
                                    source.from == kHost ? local.detach() : at::empty({local.numel()}, at::kFloat));
      value = std::move(coded.codes);
      scales[k] = std::move(coded.scales);
    } else {
      const at::ScalarType storage = options.storage_of_state(k, *source.param);
      // torch makes a DTensor's where it is.
      const auto as = source.from == kHost ? param.options().dtype(storage)
                                           : param.options().dtype(storage).device(home_of(source));
      const bool factor = rule_->factored && row.variant == 0;
      value = factor ? source.sharded
                           ? at::zeros(state_shape(row, source, k), tensor_of(source.param).options().dtype(storage))
                           : param.new_zeros(state_shape(row, source, k), as)
                     : at::zeros_like(rule_->like_grad(k) ? grad_of(source.slot) : param, as);
      if (factor && source.sharded) value = unpack(Ref(given_["replicated"](borrow(slot.param), wrap(value))).ptr());
    }
    const Ref object = wrap(value);
    const at::Tensor& local = local_tensor(object.ptr());
    if (!is_coded(row.state_dtype[k])) {
      const double start = options.state[k] == Dtype::r16 ? std::sqrt(initial) : initial;
      if (start != 0) is_complex(*source.param) ? at::view_as_real(local).fill_(start) : local.fill_(start);
      storage_of(*local.unsafeGetTensorImpl(), row.state_dtype[k]);
      row.state_dtype[k] = options.meant(k, row.state_dtype[k]);
    }
    entry[keys_[k].name] = object;
    source.state[k] = local.unsafeGetTensorImpl();
    source.state_object[k] = object.ptr();
  }
}

// New states are complete before the first of them is entered.
void Roster::enter_states(NewEntries& new_entries, bool device_decides) {
  if (new_states_.empty()) return;
  std::unordered_map<PyObject*, size_t> made;  // a param listed twice has one state
  std::vector<std::pair<PyObject*, Ref>> entries;
  for (const size_t i : new_states_) {
    Source& source = sources_[i];
    const Slot& slot = slots_[source.slot];
    const auto [twin, is_new] = made.emplace(slot.param, i);
    if (!is_new) {
      std::copy_n(sources_[twin->second].state, kMaxStates, source.state);
      std::copy_n(sources_[twin->second].counter, kMaxCounters, source.counter);
      std::copy_n(sources_[twin->second].counter_object, kMaxCounters, source.counter_object);
      std::copy_n(sources_[twin->second].attached, kAttached, source.attached);
      std::copy_n(sources_[twin->second].state_object, kMaxStates, source.state_object);
      std::copy_n(sources_[twin->second].attached_object, kAttached, source.attached_object);
      source.missing = 0;
      std::copy_n(rows_[twin->second].state_dtype, kMaxStates, rows_[i].state_dtype);
      continue;
    }
    py::dict entry;
    StateScales scales;
    if (source.first) make_own(i, entry, scales, device_decides);
    make_attached(i, entry, scales);
    entries.emplace_back(slot.param, std::move(entry));
  }

  for (auto& [param, entry] : entries)
    new_entries.enter(borrow(slots_[sources_[made[param]].slot].state), param, entry);
}

void Roster::make_states(NewEntries& new_entries, bool device_decides) {
  enter_states(new_entries, device_decides);
  for (const size_t i : new_states_) {
    Row& row = rows_[i];
    Source& source = sources_[i];
    outfit(i);
    lay_out(row, source);
    address(row, source, moved_);
    for (int c = 0; c < rule_->counters; ++c)
      if (source.counter[c]) source.count[c] = data_of(*source.counter[c]);
    read_counts(source);
  }
}

}  // namespace fusedopt
