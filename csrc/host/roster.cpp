// How a roster finds all of an optimizer's params, and brings those together that step together.
#include "roster.h"

#include "bind.h"
#include "shards.h"

namespace fusedopt {

Roster::Roster(const std::string& rule, const py::dict& defaults, bool device_counters, const py::dict& options,
               const Families& families)
    : families_(families),
      rule_(rule_named(rule)),
      given_(options),
      device_counters_(device_counters),
      names_(*rule_, defaults, options),
      options_(*rule_, options) {
  const auto add = [&](const std::string& key, int role) { keys_.push_back({intern(key.c_str()), role}); };
  for (int k = 0; k < rule_->states; ++k) add(rule_->state_names[k], k);
  for (int c = 0; c < rule_->counters; ++c) add(rule_->counter_names[c], kMaxStates + c);
  for (int n = 0; n < kNames - kPartnerNames; ++n) add(kPartnerName[n], kOwn + kPartnerNames + n);
  add("ema", kOwn + kAverageTensor);
  add("code_order", kOwn + kOrder);
  for (int k = 0; k < rule_->states; ++k) add(std::string(rule_->state_names[k]) + "_scale", kOwn + kScaleTensor + k);
  if (!options.contains("products")) return;
  const auto given = options["products"].cast<py::dict>();
  const Rule* after = rule_named(given["rule"].cast<std::string>());
  // The last of its numbers is no group's: it is of the matrices.
  py::dict none;
  none[after->hyper_names[after->hypers - 1]] = 1.0;
  products_ = std::make_unique<Products>(
      Products{after, GroupNames(*after, none, py::dict()), given["multiply"], given["most_bytes"].cast<int64_t>()});
}

void Roster::find_rules(const std::string& name) {
  const cpu::Isa* chosen = &cpu::chosen_isa();
  if (isa_ == chosen) return;
  rule_ = rule_named(name);
  if (products_) products_->after = rule_named(products_->after->name);
  isa_ = chosen;
}

std::string Roster::label(int group, int position) const { return param_label(group_list_, group, position); }

void Roster::read_groups(PyObject* groups, PyObject* state) {
  if (!is_sequence(groups)) throw py::type_error("optimizer.param_groups is not a list");
  group_list_ = groups;
  groups_.resize(PySequence_Fast_GET_SIZE(groups));
  has_options_ = false;
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g) {
    Group& group = groups_[g];
    const Options* before = group.options.get();
    group.read(PySequence_Fast_GET_ITEM(groups, g), names_, *rule_, g, state);
    if (group.options.get() != before) unsettle();
    const bool equal =
        g > 0 && groups_[g - 1].sign == group.sign && group.device == kHost &&
        std::equal(group.hypers.begin(), group.hypers.begin() + rule_->hypers, groups_[g - 1].hypers.begin());
    group.same_as = equal ? groups_[g - 1].same_as : g;
    has_options_ = has_options_ || options_of(g).beyond_torch();
  }
  if (rule_->joint) check_groups_agree();
  if (!products_) return;
  products_->groups.resize(groups_.size());
  for (int g = 0; g < static_cast<int>(groups_.size()); ++g)
    products_->groups[g].read(PySequence_Fast_GET_ITEM(groups, g), products_->names, *products_->after, g, state);
}

bool Roster::slots_match(PyObject* state) {
  if (PyDict_GET_SIZE(state) != static_cast<Py_ssize_t>(order_.size())) return false;
  if (state != order_of_ || version_of(state) != order_version_ || order_version_ == 0) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (const auto& entry : order_)
      if (!PyDict_Next(state, &position, &key, &value) || key != entry.first || value != entry.second) return false;
    order_of_ = state;
    order_version_ = version_of(state);
  }
  size_t slot = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(groups_[g].params);
    if (slot + count > slots_.size()) return false;
    for (Py_ssize_t i = 0; i < count; ++i, ++slot)
      if (PySequence_Fast_GET_ITEM(groups_[g].params, i) != slots_[slot].param ||
          slots_[slot].group != static_cast<int>(g))
        return false;
  }
  return slot == slots_.size();
}

void Roster::rebuild_slots(PyObject* state) {
  std::unordered_map<PyObject*, PyObject*> dict_of;
  std::unordered_map<PyObject*, int> seen;
  order_.clear();
  slots_.clear();
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(state, &position, &key, &value);) {
    order_.emplace_back(key, value);
    dict_of[key] = value;
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(groups_[g].params); ++i) {
      PyObject* param = PySequence_Fast_GET_ITEM(groups_[g].params, i);
      if (!THPVariable_Check(param)) throw py::type_error(label(g, i) + " is not a tensor");
      const auto found = dict_of.find(param);
      slots_.push_back({param, found == dict_of.end() ? nullptr : found->second, nullptr, static_cast<int>(g),
                        static_cast<int>(i), seen[param]++, 0});
    }
  }
  order_of_ = nullptr;
  rows_.resize(slots_.size());
  sources_.resize(slots_.size());
  extras_.resize(slots_.size());
  unsettle();
}

const Roster::Signature* Roster::signature_of(PyObject* dict) {
  Signature signature;
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(dict, &position, &key, &value);) {
    int role = -1;
    for (const StateKey& known : keys_)
      if (PyUnicode_Check(key) && PyUnicode_Compare(key, known.name.ptr()) == 0) role = known.role;
    signature.keys.push_back(borrow(key));
    signature.role.push_back(role);
  }
  for (const Signature& known : signatures_)
    if (known.keys.size() == signature.keys.size() &&
        std::equal(known.keys.begin(), known.keys.end(), signature.keys.begin(),
                   [](const Ref& a, const Ref& b) { return a.is(b); }))
      return &known;
  return &signatures_.emplace_back(std::move(signature));
}

void Roster::unsettle() {
  for (Source& source : sources_) source.settled = false;
}

bool Roster::read(PyObject* groups, PyObject* state, const py::object& grads) {
  state_of_all_ = state;
  read_groups(groups, state);
  const bool listed_anew = !slots_match(state);
  if (listed_anew) rebuild_slots(state);
  take_grads(grads);
  return listed_anew;
}

void Roster::release() {
  held_.clear();
  grads_ = nullptr;
}

void Roster::take_grads(const py::object& grads) {
  grads_ = nullptr;
  if (grads.is_none()) return;
  if (!is_sequence(grads.ptr())) throw py::type_error("grads is not a list");
  if (PySequence_Fast_GET_SIZE(grads.ptr()) != static_cast<Py_ssize_t>(slots_.size()))
    throw py::value_error("grads has " + std::to_string(PySequence_Fast_GET_SIZE(grads.ptr())) + " entries and " +
                          std::to_string(slots_.size()) + " params are to be stepped; give one for each");
  for (size_t i = 0; i < slots_.size(); ++i)
    if (!THPVariable_Check(PySequence_Fast_GET_ITEM(grads.ptr(), i)))
      throw py::type_error("grads[" + std::to_string(i) + "] is not a tensor");
  grads_ = PySequence_Fast_ITEMS(grads.ptr());
}

// fully_shard puts other params in the place of those it is given, which then get no gradients any more. It leaves a
// mark on them, as far as the installed torch does (2.13 does).
void Roster::refuse_replaced() const {
  if (!PyDict_GetItemString(PyImport_GetModuleDict(), "torch.distributed.fsdp")) return;
  static PyObject* const mark = intern("_fsdp_orig_uid").release().ptr();
  for (const Slot& slot : slots_)
    if (!is_dtensor(slot.param) && PyObject_HasAttr(slot.param, mark))
      throw std::runtime_error(label(slot.group, slot.position) +
                               ": fully_shard has put a DTensor in its place since this optimizer was made, so it gets "
                               "no gradients; make the optimizer of the sharded model's parameters()");
}

// Brings rows that step together side by side, those of one wave and one device, on their own or on the host, and notes
// which need states.
void Roster::find_passes() {
  const auto pass = [&](size_t i) {
    return std::make_tuple(slots_[sources_[i].slot].wave, sources_[i].device, sources_[i].from);
  };
  bool sorted = true;
  for (size_t i = 1; sorted && i < count_; ++i) sorted = pass(i - 1) <= pass(i);
  if (!sorted) {
    std::vector<size_t> index(count_);
    for (size_t i = 0; i < count_; ++i) index[i] = i;
    std::stable_sort(index.begin(), index.end(), [&](size_t a, size_t b) { return pass(a) < pass(b); });
    const std::vector<Row> rows = rows_;
    const std::vector<Source> sources = sources_;
    const std::vector<Extras> extras = extras_;
    for (size_t i = 0; i < count_; ++i) {
      rows_[i] = rows[index[i]];
      sources_[i] = sources[index[i]];
      extras_[i] = extras[index[i]];
      if (rows_[i].extras) rows_[i].extras = &extras_[i];
    }
  }
  passes_.clear();
  new_states_.clear();
  for (size_t i = 0; i < count_; ++i) {
    if (i == 0 || pass(i - 1) != pass(i)) {
      const auto [wave, device, from] = pass(i);
      passes_.push_back({i, i, wave, device, from});
    }
    passes_.back().last = i + 1;
    if (sources_[i].first || sources_[i].missing) new_states_.push_back(i);
  }
  // They are entered in the order of the params, wherever these are.
  if (!sorted)
    std::sort(new_states_.begin(), new_states_.end(),
              [&](size_t a, size_t b) { return sources_[a].slot < sources_[b].slot; });
}

py::list Roster::collect(bool clears_grad) {
  clears_grad_ = clears_grad;
  // A dispatch mode (FakeTensorMode, make_fx, a flop counter) must see operations, so torch's path takes all.
  const bool observed = c10::impl::TorchDispatchModeTLS::any_modes_set();
  py::list leftover;
  if (observed || !all_settled()) collect_each(observed, leftover);
  if (moved_.rows) {
    ++version_;
    if (moved_.params) find_waves();
    find_passes();
    moved_ = {};
  }
  return leftover;
}

void Roster::collect_each(bool observed, py::list& leftover) {
  const int slots = static_cast<int>(slots_.size());
  const size_t before = count_;
  count_ = 0;
  layouts_.clear();  // rows that have one are made anew in every step
  lines_of_.clear();
  py::list params;
  int group = -1;
  for (int slot = 0; slot < slots; ++slot) {
    Found found = observed ? Found::leftover : settled(slot, count_, moved_) ? Found::row : collect_row(slot, count_);
    if (observed && !grad_of(slot).defined()) found = Found::nothing;
    if (found == Found::row) ++count_;
    if (found != Found::leftover) continue;
    if (slots_[slot].group != group) {
      group = slots_[slot].group;
      params = py::list();
      leftover.append(py::make_tuple(group, params));
    }
    params.append(borrow(slots_[slot].param));
  }
  moved_.rows = moved_.rows || count_ != before;
  simple_ = count_ == slots_.size() && !rule_->indexed;
  elements_ = 0;
  for (size_t i = 0; i < count_; ++i) {
    simple_ = simple_ && sources_[i].settled;
    elements_ += rows_[i].numel;
  }
}

bool Roster::grads_overlap() const {
  std::vector<std::pair<const char*, const char*>> ranges;
  for (size_t i = 0; i < count_; ++i) {
    const TensorImpl& grad = *sources_[i].grad;
    if (grad.numel() == 0) continue;
    if (!grad.is_non_overlapping_and_dense()) return true;
    const char* begin = static_cast<const char*>(read_of(grad));
    ranges.emplace_back(begin, begin + grad.numel() * grad.dtype().itemsize());
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second) return true;
  return false;
}

// What a step writes of a row.
template <class F>
void Roster::each_written(size_t i, F&& f) const {
  const Source& source = sources_[i];
  const auto call = [&](TensorImpl* impl) {
    if (impl) f(impl);
  };
  call(source.param);
  for (int c = 0; c < rule_->counters; ++c) call(source.counter[c]);
  for (int k = 0; k < rule_->states; ++k) call(source.state[k]);
  for (int a = 0; rows_[i].extras && a < kAttached; ++a) call(source.attached[a]);
  if (clears_grad_) call(source.grad);
  if (source.sharded) whole(source, call);
}

void Roster::bump_versions() const {
  // A version lies apart from its tensor, and being atomic each is waited for alone: so those of some rows are asked
  // for first.
  constexpr size_t kOfRow = 2 * (2 + kMaxCounters + kMaxStates + kAttached), kOfSome = 32;
  std::array<TensorImpl*, kOfSome + kOfRow> written;
  size_t count = 0;
  for (size_t i = 0; i < count_; ++i) {
    each_written(i, [&](TensorImpl* impl) {
      __builtin_prefetch(*reinterpret_cast<void* const*>(&impl->version_counter()), 1);
      written[count++] = impl;
    });
    if (count < kOfSome && i + 1 < count_) continue;
    std::for_each_n(written.begin(), count, [](TensorImpl* impl) { impl->bump_version(); });
    count = 0;
  }
}

Roster::Held Roster::hold_all() const {
  Held held;
  const auto hold = [&](TensorImpl* impl) { held.push_back(c10::intrusive_ptr<TensorImpl>::reclaim_copy(impl)); };
  for (size_t i = 0; i < count_; ++i) {
    each_written(i, hold);
    hold(sources_[i].grad);
  }
  return held;
}

}  // namespace fusedopt
