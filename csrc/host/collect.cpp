// How a roster finds and checks one param with its gradient and states.
#include "roster.h"
#include "shards.h"

namespace fusedopt {

void Roster::read_counts(Source& source) const {
  for (int c = 0; c < rule_->counters; ++c) {
    Number& before = source.before[c];
    const TensorImpl* counter = source.counter[c];
    if (!counter) {
      before = {PyLong_AsDouble(source.counter_object[c])};
      if (PyErr_Occurred()) throw py::error_already_set();
      continue;
    }
    const bool wide = is_double(*counter);
    // What sums decide on a kernel alone knows.
    const auto remembered = [&] { return rule_->remembers && device_index(*counter) == source.device; };
    if (source.device != kHost && (remembered() || number_on_device(*counter)))
      before = {0, source.count[c], wide ? Dtype::f64 : Dtype::f32};
    else
      before = {wide ? *static_cast<double*>(source.count[c]) : *static_cast<float*>(source.count[c])};
  }
}

bool Roster::attached_as_before(const Source& source) const {
  for (int at = 0; at < kAttached; ++at) {
    TensorImpl* before = source.attached[at];
    if (!before) continue;
    const TensorImpl* now = known_tensor(source, source.attached_object[at]);
    if (now != before || now->key_set() != source.keys || now->dtype() != source.attached_type[at]) return false;
    if (at >= kScaleTensor
            ? now->numel() != blocks_of(*source.param) || !now->is_contiguous()
            : !equal(now->sizes(), source.param->sizes()) || !equal(now->strides(), source.param->strides()))
      return false;
    if (source.device != kHost && device_index(*now) != source.device) return false;
  }
  return true;
}

// Whether all that stands behind row `at` is as it was when the row was made; then only the addresses are read anew.
// Most steps are that for all rows, so this is what a step costs: some 500 instructions a param.
bool Roster::settled(int slot, size_t at, Moved& moved) {
  Source& source = sources_[at];
  if (!source.settled || source.slot != slot) return false;
  const Slot& its = slots_[slot];
  const Group& group = groups_[its.group];
  Row& row = rows_[at];
  // Of factors the param's shape decides, which is compared below.
  if (__builtin_expect(group.variant != row.variant, 0) && !rule_->factored) return false;
  if (group.differentiable) return false;
  if (row.extras ? row.extras->clears_grad != clears_grad_ : clears_grad_) return false;
  if (group.device != kHost && group.device != source.device) return false;
  if (its.state && version_of(its.state) != source.state_version) return false;

  TensorImpl* param = unpack(its.param).unsafeGetTensorImpl();
  TensorImpl* grad = grad_of(slot).unsafeGetTensorImpl();
  if (source.sharded && !shards_as_before(source, param, grad)) return false;
  const c10::DispatchKeySet keys = source.keys;
  // Only a plain tensor can be asked for its sizes without going into Python.
  if (param != source.param || param->key_set() != keys) return false;
  const int device = source.device;
  const c10::IntArrayRef sizes = param->sizes(), strides = param->strides();
  const auto here = [=](const TensorImpl& impl, caffe2::TypeMeta dtype) __attribute__((always_inline)) {
    return impl.key_set() == keys && impl.dtype() == dtype && (device == kHost || device_index(impl) == device);
  };
  const auto alike = [=](const TensorImpl& impl, caffe2::TypeMeta dtype) __attribute__((always_inline)) {
    return here(impl, dtype) && equal(impl.sizes(), sizes) && equal(impl.strides(), strides);
  };
  if (!here(*param, source.param_type) || param->numel() != row.numel || !param->is_non_overlapping_and_dense() ||
      !alike(*grad, source.grad_type))
    return false;
  const int states = rule_->states, counters = rule_->counters;
  for (int k = 0; k < states; ++k) {
    if (!source.state[k]) continue;
    const TensorImpl* state = known_tensor(source, source.state_object[k]);
    if (state != source.state[k]) return false;
    if (__builtin_expect(is_coded(row.state_dtype[k]), 0)
            ? !here(*state, source.state_type[k]) || !are_codes(*state, *param, row.state_dtype[k])
            : !alike(*state, source.state_type[k]) && !factor_as_before(row, source, k, *state))
      return false;
  }
  for (int c = 0; c < counters; ++c) {
    const TensorImpl* counter = unpack(source.counter_object[c]).unsafeGetTensorImpl();
    if (counter != source.counter[c] || counter->key_set() != source.counter_keys || counter->numel() != 1 ||
        counter->dtype() != source.counter_type[c] ||
        (source.before[c].device && device_index(*counter) != source.device))
      return false;
  }
  if (source.shaped && !(equal(strides, source.strides) && equal(sizes, source.sizes))) return false;
  if (row.extras && !attached_as_before(source)) return false;
  source.grad = grad;
  for (int c = 0; c < counters; ++c) source.count[c] = first_of(*source.counter[c]);
  read_counts(source);
  address(row, source, moved);
  return true;
}

// All rows at once, by several threads: what is looked at lies about in memory, and each waits for its own. That needs
// no Python: the caller holds the GIL, so nothing changes meanwhile, and a row that is not as simple is looked at
// alone.
bool Roster::all_settled() {
  if (!simple_ || count_ != slots_.size()) return false;
  const int64_t count = static_cast<int64_t>(count_);
  const bool noted = lines_of_.size() == count_ + 1;
  std::atomic<bool> all = true, rows = false, params = false;
  cpu::in_shares(count, elements_ + count * kLookingAt, at::get_num_threads(), [&](int64_t begin, int64_t end) {
    Moved its;
    try {
      for (int64_t i = begin; i < end && all; ++i) {
        if (noted && i + kAhead < count) {
          const size_t end = lines_of_[i + kAhead + 1];
#pragma GCC unroll 8
          for (size_t at = lines_of_[i + kAhead]; at < end; ++at) __builtin_prefetch(lines_[at]);
        }
        if (!settled(static_cast<int>(i), i, its)) all = false;
      }
    } catch (...) {  // such as want of memory for a copy-on-write storage, which is told when it is met again
      all = false;
    }
    if (its.rows) rows = true;
    if (its.params) params = true;
  });
  moved_.rows = moved_.rows || rows;
  moved_.params = moved_.params || params;
  if (all && !noted) note_lines();
  return all;
}

// Makes row `at` of a slot.
Roster::Found Roster::collect_row(int slot, size_t at) {
  TensorImpl* whole_param = unpack(slots_[slot].param).unsafeGetTensorImpl();
  const at::Tensor& whole_grad = grad_of(slot);
  if (!whole_grad.defined()) return Found::nothing;
  const Group& group = groups_[slots_[slot].group];

  Row& row = rows_[at];
  Source& source = sources_[at];
  row = Row{};
  source = Source{};
  moved_ = {true, true};
  source.slot = slot;
  source.param = whole_param;
  source.grad = whole_grad.unsafeGetTensorImpl();
  enter_shards(source, whole_grad);
  TensorImpl *param = source.param, *grad = source.grad;
  source.device = device_index(*param);
  source.from = kHost;
  if (options_of(source).offload && source.device != kHost) send_home(source);
  row.slot = static_cast<uint32_t>(slot);
  if (rule_->indexed) return collect_slices(row, source);
  // Products are of matrices. torch's constructor sees to that, and none does for what groups get afterwards.
  const bool no_matrix = products_ && param->dim() != 2;
  if (no_matrix && options_of(source).beyond_torch())
    fail(source,
         "it has shape " + shape_of(*param) + ", and only matrices can be stepped; leave it to another optimizer");
  if (no_matrix || group.differentiable || !plain(*param) || !plain(*grad) || grad->device() != param->device() ||
      ((products_ || rule_->factored) && is_complex(*param))) {
    // torch refuses inference tensors outside inference mode only after it has written them.
    if (param->is_inference()) param->bump_version();
    if (plain(*param) && !dispatches_to_python(*grad) && !grad->is_sparse() && grad->device() != param->device())
      fail(source,
           "its gradient is on " + grad->device().str() + ", the param on " + param->device().str() + "; move one");
    return Found::leftover;
  }

  if (!storage_of(*param, row.param_dtype))
    fail(source, dtype_name(*param) + " params cannot be stepped; convert it to float32, float64, bfloat16 or float16");
  if (!storage_of(*grad, row.grad_dtype) || is_complex(*grad) != is_complex(*param))
    fail(source,
         "its gradient is " + dtype_name(*grad) + ", the param " + dtype_name(*param) + "; convert the gradient");
  if (!equal(grad->sizes(), param->sizes()))
    fail(source, "its gradient has shape " + shape_of(*grad) + ", the param " + shape_of(*param) + "; set .grad anew");
  row.variant = static_cast<uint8_t>(rule_->factored ? param->dim() <= 1 : group.variant);
  row.numel = param->numel() * (is_complex(*param) ? 2 : 1);
  const Found state = read_state(row, source);
  if (state != Found::row) return state;
  outfit(at);
  if (!lay_out(row, source)) return Found::leftover;
  if (group.device != kHost)
    groups_[slots_[slot].group].fetch_for(source.device, names_,
                                          PySequence_Fast_GET_ITEM(group_list_, slots_[slot].group));
  if (source.first || source.missing) return Found::row;
  read_counts(source);
  address(row, source, moved_);
  if (!source.settled) return Found::row;
  source.state_version = slots_[slot].state ? version_of(slots_[slot].state) : 1;
  source.settled = source.state_version != 0;
  source.keys = param->key_set();
  source.param_type = param->dtype();
  source.grad_type = grad->dtype();
  source.shaped = products_ || rule_->factored || has_codes(row, source);
  for (int k = 0; k < rule_->states; ++k)
    if (source.state[k]) source.state_type[k] = source.state[k]->dtype();
  if (source.shaped) {
    source.sizes = param->sizes().vec();
    source.strides = param->strides().vec();
  }
  for (int a = 0; a < kAttached; ++a)
    if (source.attached[a]) source.attached_type[a] = source.attached[a]->dtype();
  for (int c = 0; c < rule_->counters; ++c) {
    source.counter_type[c] = source.counter[c]->dtype();
    source.counter_keys = source.counter[c]->key_set();
    source.settled = source.settled && source.counter_keys == source.counter[0]->key_set();
  }
  return Found::row;
}

void Roster::address(Row& row, const Source& source, Moved& moved) const {
  if (row.numel == 0) return;
  bool changed = false;
  const auto set = [&](auto& pointer, auto* to) {
    changed = changed || pointer != to;
    pointer = to;
  };
  const TensorImpl* exact = row.extras ? exact_param(source) : source.param;
  set(row.param, first_of(*exact));
  Extras* extras = const_cast<Extras*>(row.extras);  // the roster's own
  const auto attach = [&](auto& pointer, const TensorImpl* tensor) {
    if (tensor) set(pointer, static_cast<std::decay_t<decltype(pointer)>>(first_of(*tensor)));
  };
  if (extras) attach(extras->partner, exact == source.param ? source.attached[kPartnerTensor] : source.param);
  moved.params = moved.params || changed;
  set(row.grad, read_of(*source.grad));
  if (changed) check_apart(row, source, exact == source.param ? row.param : extras->partner);
  for (int k = 0; k < rule_->states; ++k)
    if (source.state[k]) set(row.state[k], first_of(*source.state[k]));
  if (extras) {
    attach(extras->average, source.attached[kAverageTensor]);
    for (int k = 0; k < rule_->states; ++k) attach(extras->scales[k], source.attached[kScaleTensor + k]);
    if (extras->clears_grad) set(row.grad, first_of(*source.grad));
  }
  moved.rows = moved.rows || changed;
}

// Leftover where torch's own step has to make sense of the counter.
Roster::Found Roster::read_counter(Source& source, int c, PyObject* value) {
  const auto name = [&] { return std::string("its state '") + rule_->counter_names[c] + "' "; };
  source.counter_object[c] = value;
  // Where torch counts in Python.
  if (rule_->indexed && PyLong_Check(value)) return Found::row;
  if (!THPVariable_Check(value)) {
    fail(source, name() + "is not a tensor; assign torch.tensor(float(value))");
  }
  TensorImpl* counter = unpack(value).unsafeGetTensorImpl();
  const at::ScalarType dtype = c10::typeMetaToScalarType(counter->dtype());
  if (source.from != kHost && counter->device() != home_of(source))
    fail(source, name() + "is on " + counter->device().str() + kNotHome);
  const bool reachable = plain(*counter) && (counter->is_cpu() || counter->device() == source.param->device());
  if (!reachable || counter->numel() != 1 || (dtype != at::kFloat && dtype != at::kDouble)) {
    if (counter->is_inference()) counter->bump_version();
    if (counter->numel() != 1)
      fail(source, name() + "has shape " + shape_of(*counter) + "; assign torch.tensor(float(value))");
    return Found::leftover;
  }
  source.counter[c] = counter;
  source.count[c] = data_of(*counter);
  return Found::row;
}

Roster::Found Roster::read_state(Row& row, Source& source) {
  Slot& slot = slots_[source.slot];
  PyObject* found[kOwn + kNames] = {};
  const Options& options = options_of(source);
  if (slot.state && !PyDict_Check(slot.state)) {
    fail(source, "its entry in optimizer.state is not a dict");
  }
  if (slot.state && PyDict_GET_SIZE(slot.state) > 0) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    bool matches =
        slot.signature && static_cast<Py_ssize_t>(slot.signature->keys.size()) == PyDict_GET_SIZE(slot.state);
    for (size_t i = 0; matches && i < slot.signature->keys.size(); ++i) {
      matches = PyDict_Next(slot.state, &position, &key, &value) && key == slot.signature->keys[i].ptr();
      if (matches && slot.signature->role[i] >= 0) found[slot.signature->role[i]] = value;
    }
    if (!matches) {
      slot.signature = signature_of(slot.state);
      position = 0;
      for (size_t i = 0; PyDict_Next(slot.state, &position, &key, &value); ++i)
        if (slot.signature->role[i] >= 0) found[slot.signature->role[i]] = value;
    }
  }

  int needed = rule_->counters, present = 0;
  const char* missing = nullptr;
  for (int c = 0; c < rule_->counters; ++c) {
    if (found[kMaxStates + c])
      ++present;
    else
      missing = rule_->counter_names[c];
  }
  for (int k = 0; k < rule_->states; ++k) {
    if (!rule_->keeps(row.variant, k)) continue;
    ++needed;
    if (found[k] && found[k] != Py_None)
      ++present;
    else
      missing = rule_->state_names[k];
  }
  source.first = needed > 0 && present == 0;
  if (source.first) {
    read_attached(row, source, found + kOwn);
    return Found::row;
  }
  if (present < needed) {
    throw py::key_error(label(slot.group, slot.position) + ": its state lacks '" + missing +
                        "'; delete optimizer.state[param] to start anew, or load a state made with these options");
  }

  for (int c = 0; c < rule_->counters; ++c) {
    const Found counter = read_counter(source, c, found[kMaxStates + c]);
    if (counter != Found::row) return counter;
  }
  for (int k = 0; k < rule_->states; ++k) {
    if (!rule_->keeps(row.variant, k)) continue;
    const auto name = [&] { return std::string("its state '") + rule_->state_names[k] + "' "; };
    if (!THPVariable_Check(found[k])) {
      fail(source, name() + "is not a tensor");
    }
    TensorImpl* state = source.sharded ? state_tensor(source, found[k], name(), rule_->factored && row.variant == 0)
                                       : unpack(found[k]).unsafeGetTensorImpl();
    const bool reachable = plain(*state) && state->device() == home_of(source);
    const bool codes = options.coded(k) && codes_of(*state, *source.param, row.state_dtype[k]);
    const bool fits =
        codes || (storage_of(*state, row.state_dtype[k]) && is_complex(*state) == is_complex(*source.param));
    if (!codes) row.state_dtype[k] = options.meant(k, row.state_dtype[k]);
    const std::vector<int64_t> shape = state_shape(row, source, k);
    if (!reachable || !fits || (!codes && !equal(state->sizes(), shape))) {
      if (state->is_inference()) state->bump_version();
      if (state->is_inference() || dispatches_to_python(*state)) return Found::leftover;
      if (!reachable)
        fail(source, name() + "is not a dense tensor on " + home_of(source).str() + " but on " + state->device().str() +
                         (source.from == kHost ? "; move it to the param's device" : kNotHome));
      if (!fits && options.coded(k) && state->dtype().itemsize() == 1)
        fail(source, name() + "has codes of shape " + shape_of(*state) + ", which are not those of a param of shape " +
                         shape_of(*source.param) + "; load the state anew");
      if (!fits)
        fail(source, name() + "is " + dtype_name(*state) + ", the param " + dtype_name(*source.param) + "; convert it");
      std::ostringstream expected;
      expected << c10::IntArrayRef(shape);
      fail(source, name() + "has shape " + shape_of(*state) + ", not " + expected.str() +
                       "; the checkpoint is of another model");
    }
    source.state[k] = state;
    source.state_object[k] = found[k];
  }
  read_attached(row, source, found + kOwn);
  return codes_in_order(row, source, found[kOwn + kOrder]) ? Found::row : read_state(row, source);
}

// The layout of a row, where its operands are not all dense in one order. False if it has too many dimensions.
bool Roster::lay_out(Row& row, Source& source) {
  if (rule_->indexed) return lay_out_slices(row, source);
  if (rule_->factored) return lay_out_factored(row, source);
  row.layout = nullptr;
  if (source.from != kHost) bring_in_order(row, source);
  TensorImpl* exact = exact_param(source);
  const TensorImpl* operands[kOperands] = {exact, source.grad};
  int slots[kOperands] = {kParam, kGrad}, count = 2;
  bool same = source.param->is_non_overlapping_and_dense() && equal(source.grad->strides(), source.param->strides());
  const auto add = [&](const TensorImpl* tensor, int operand) {
    if (!tensor) return;
    slots[count] = operand;
    operands[count++] = tensor;
    same = same && equal(tensor->strides(), source.param->strides());
  };
  for (int k = 0; k < rule_->states; ++k)
    if (!is_coded(row.state_dtype[k])) add(source.state[k], kState + k);
  add(exact == source.param ? source.attached[kPartnerTensor] : source.param, kPartner);
  add(source.attached[kAverageTensor], kAverage);
  same = same && equal(exact->strides(), source.param->strides());
  source.settled = same && source.from == kHost && !source.first && !source.missing && !is_complex(*source.param);
  if (same || row.numel == 0) return true;

  Layout merged;
  if (!make_layout(operands, count, merged)) return false;
  for (int o = 0; o < count; ++o) {
    for (int d = 0; d < merged.dims; ++d) {
      if (o != kGrad && merged.stride[o][d] == 0 && merged.size[d] > 1) {
        fail(source,
             "unsupported operation: more than one element of the written-to tensor refers to a single memory "
             "location. Please clone() the tensor before performing the operation.");
      }
    }
  }
  if (dense(merged, count)) return true;
  Layout& layout = layouts_.emplace_back(merged);
  for (int o = 0; o < count; ++o) std::copy_n(merged.stride[o], merged.dims, layout.stride[slots[o]]);
  row.layout = &layout;
  return true;
}

}  // namespace fusedopt
