// What a roster does for the extras of its rows.
#include "codec.h"
#include "roster.h"
#include "shards.h"

namespace fusedopt {

// Whether this param has a tensor of that kind.
bool Roster::wants(const Row& row, const Source& source, int at) const {
  if (at >= kScaleTensor) return source.state[at - kScaleTensor] && is_coded(row.state_dtype[at - kScaleTensor]);
  return at == kAverageTensor || in_16_bits(*source.param);
}

// Finds the tensors that a row has beside its rule's, and notes those that have yet to be made.
void Roster::read_attached(Row& row, Source& source, PyObject** found) {
  const Options& options = options_of(source);
  for (int n = 0; n < kNames - kPartnerNames; ++n) {
    PyObject* partner = found[kPartnerNames + n];
    if (n == options.partner_name())
      found[kPartnerTensor] = partner;
    else if (partner && THPVariable_Check(partner) && in_16_bits(*source.param) &&
             equal(local_tensor(partner).sizes(), source.param->sizes()))
      fail(source, std::string("its state has a '") + kPartnerName[n] +
                       "', which its group's options would leave behind; they are fixed once states are made, so load "
                       "state_dict() into an optimizer that is constructed with others");
  }
  if (options.pair == Pair::remainder && c10::typeMetaToScalarType(source.param->dtype()) == at::kHalf)
    fail(source, "master_weights='remainder' keeps the low half of a float32 beside a bfloat16, and it is " +
                     dtype_name(*source.param) + "; use master_weights='float32'");
  if (options.pair == Pair::copy)
    if (PyObject* copy = PyDict_GetItem(options.copies.ptr(), slots_[source.slot].param))
      attach(source, kPartnerTensor, copy, "its copy ");
  for (const Options::Key& key : options.keys) {
    const int at = key.at;
    if (at == kOrder || !wants(row, source, at)) continue;
    const std::string name = "its state '" + std::string(py::str(key.name)) + "' ";
    if (found[at] && found[at] != Py_None)
      attach(source, at, found[at], name);
    else if (at >= kScaleTensor)
      fail(source, name + "is missing, without which codes mean nothing; load the state anew");
    else
      source.missing |= 1u << at;
  }
}

void Roster::attach(Source& source, int at, PyObject* value, const std::string& name) const {
  if (!THPVariable_Check(value)) fail(source, name + "is not a tensor");
  TensorImpl* tensor =
      source.sharded && at < kScaleTensor ? state_tensor(source, value, name) : unpack(value).unsafeGetTensorImpl();
  if (tensor->is_inference()) tensor->bump_version();  // which raises what torch raises
  const bool travels = at == kPartnerTensor && options_of(source).pair == Pair::copy;
  const c10::Device place = travels ? source.param->device() : home_of(source);
  if (!plain(*tensor) || tensor->device() != place)
    fail(source, name + "is not a dense tensor on " + place.str() +
                     (travels || source.from == kHost ? "; move it to the param's device" : kNotHome));
  const at::ScalarType type = c10::typeMetaToScalarType(tensor->dtype());
  if (at >= kScaleTensor) {
    if (type != at::kFloat || tensor->numel() != blocks_of(*source.param) || !tensor->is_contiguous())
      fail(source, name + "is not a contiguous float32 tensor of " + std::to_string(blocks_of(*source.param)) +
                       " scales, one for each " + std::to_string(kCodeBlock) + " elements");
  } else {
    if (!equal(tensor->sizes(), source.param->sizes()))
      fail(source, name + "has shape " + shape_of(*tensor) + ", the param " + shape_of(*source.param));
    Dtype dtype;
    const bool fits = at == kAverageTensor                         ? storage_of(*tensor, dtype)
                      : options_of(source).pair == Pair::master    ? type == at::kFloat
                      : options_of(source).pair == Pair::remainder ? type == at::kShort
                                                                   : in_16_bits(*tensor);
    if (!fits || is_complex(*tensor) != is_complex(*source.param))
      fail(source, name + "is " + dtype_name(*tensor) + ", which does not go with a param that is " +
                       dtype_name(*source.param));
  }
  source.attached[at] = tensor;
  source.attached_object[at] = value;
}

bool Roster::has_codes(const Row& row, const Source& source) const {
  for (int k = 0; k < rule_->states; ++k)
    if (source.state[k] && is_coded(row.state_dtype[k])) return true;
  return false;
}

// Whether states in codes lie in the order of the memory that the param has now. If not, as after
// module.to(memory_format=...), they are brought into it.
bool Roster::codes_in_order(const Row& row, const Source& source, PyObject* order) const {
  if (!has_codes(row, source)) return true;
  const TensorImpl* exact = exact_param(source);
  if (!order || !PyTuple_Check(order) || PyTuple_GET_SIZE(order) != exact->dim())
    fail(source, "its state 'code_order' is missing, without which codes mean nothing; load the state anew");
  const std::vector<int64_t> now = order_of(*exact);
  for (size_t d = 0; d < now.size(); ++d) {
    if (PyLong_AsLong(PyTuple_GET_ITEM(order, d)) == now[d]) continue;
    reorder_codes(row, source, py::handle(order).cast<std::vector<int64_t>>());
    return false;
  }
  return true;
}

void Roster::reorder_codes(const Row& row, const Source& source, const std::vector<int64_t>& before) const {
  const at::Tensor model = tensor_of(exact_param(source));
  py::dict made;
  for (int k = 0; k < rule_->states; ++k) {
    if (!source.state[k] || !is_coded(row.state_dtype[k])) continue;
    const at::Tensor value =
        decode_state(tensor_of(source.state[k]), tensor_of(source.attached[kScaleTensor + k]), model, before);
    const Coded coded = encode_state(value, row.state_dtype[k], model);
    made[rule_->state_names[k]] = wrap(coded.codes);
    made[(std::string(rule_->state_names[k]) + "_scale").c_str()] = wrap(coded.scales);
  }
  made["code_order"] = py::tuple(py::cast(order_of(*exact_param(source))));
  if (PyDict_Update(slots_[source.slot].state, made.ptr()) != 0) throw py::error_already_set();
}

// Gives row `at` its extras, if it has any.
void Roster::outfit(size_t at) {
  Row& row = rows_[at];
  Source& source = sources_[at];
  row.extras = nullptr;
  const Options& options = options_of(source);
  if (!options.any() && !clears_grad_) return;
  Extras& extras = extras_[at];
  extras = Extras{};
  row.extras = &extras;
  extras.stochastic = options.stochastic;
  for (int k = 0; k < rule_->states; ++k) extras.states_by_chance |= options.by_chance(k) ? 1 << k : 0;
  extras.clears_grad = clears_grad_;
  if (const TensorImpl* partner = source.attached[kPartnerTensor]) {
    extras.pair = options.pair;
    const bool master = options.pair == Pair::master;
    const TensorImpl& stored = master ? *source.param : *partner;
    if (options.pair != Pair::remainder) storage_of(stored, extras.partner_dtype);
    if (master) storage_of(*partner, row.param_dtype);
  }
  if (source.attached[kAverageTensor]) storage_of(*source.attached[kAverageTensor], extras.average_dtype);
  extras.new_average = source.missing >> kAverageTensor & 1;
  if (source.sharded && row.numel > 0 && options.draws()) extras.numbering = numbering_of(source);
}

// Makes what is missing of a row whose states exist by now.
void Roster::make_attached(size_t i, py::dict& entry, const StateScales& scales) {
  Source& source = sources_[i];
  const at::Tensor param = unpack(slots_[source.slot].param).detach();
  const at::TensorOptions there = param.options().device(home_of(source));
  const Options& options = options_of(source);
  for (const Options::Key& key : options.keys) {
    const int at = key.at;
    if (at == kOrder) {
      if (source.first && has_codes(rows_[i], source))
        entry[key.name] = py::tuple(py::cast(order_of(*exact_param(source))));
      continue;
    }
    if (at >= kScaleTensor ? !scales[at - kScaleTensor].defined() : !(source.missing >> at & 1)) continue;
    at::Tensor made;
    if (at >= kScaleTensor) {
      made = scales[at - kScaleTensor];
    } else if (at == kAverageTensor) {
      const at::ScalarType own = param.scalar_type();
      made = at::zeros_like(param, there.dtype(in_16_bits(*source.param) ? at::kFloat : own));
    } else if (options.pair == Pair::master) {
      made = param.to(there.dtype(at::kFloat));
    } else {
      made = at::zeros_like(param, there.dtype(options.pair == Pair::remainder ? at::kShort : param.scalar_type()));
    }
    const Ref object = wrap(made);
    entry[key.name] = object;
    source.attached[at] = local_tensor(object.ptr()).unsafeGetTensorImpl();
    source.attached_object[at] = object.ptr();
  }
}

TensorImpl* Roster::exact_param(const Source& source) const {
  TensorImpl* partner = source.attached[kPartnerTensor];
  return partner && options_of(source).pair == Pair::master ? partner : source.param;
}

void Roster::refuse_leftover(const py::list& leftover) const {
  for (const py::handle one : leftover) {
    const auto [group, params] = one.cast<std::pair<int, py::list>>();
    if (!options_of(group).beyond_torch()) continue;
    int position = 0;
    while (PySequence_Fast_GET_ITEM(groups_[group].params, position) != params[0].ptr()) ++position;
    const std::string why = why_left(params[0].cast<py::object>());
    throw std::runtime_error(label(group, position) + ": " +
                             (why.empty() ? "with its gradient it can only take torch's own step, which"
                                          : why + ". torch's own step, which would take it as it is,") +
                             " knows no " + names_.beyond_torch + "; use an optimizer without these for it");
  }
}

void Roster::set_draws(uint64_t key, uint32_t first_slot, double ema_decay) {
  for (size_t i = 0; i < count_; ++i) {
    if (!rows_[i].extras) continue;
    extras_[i].key = stream(key, first_slot + rows_[i].slot);
    const double weight = 1 - groups_[slots_[sources_[i].slot].group].ema_decay.value_or(ema_decay);
    version_ += extras_[i].average_weight != weight;
    extras_[i].average_weight = weight;
  }
}

// Has a row of a device stepped on the host.
void Roster::send_home(Source& source) const {
  if (source.sharded)
    fail(source,
         "it is a DTensor, and offload='cpu' steps ordinary tensors; leave the option out, or have fully_shard offload "
         "it with CPUOffloadPolicy");
  if (rule_->indexed || rule_->factored || products_ || rule_->joint)
    fail(source, std::string("offload='cpu' steps one param after the other by its elements, which rule '") +
                     rule_->name + "' does not; leave the option out");
  source.from = std::exchange(source.device, kHost);
}

void Roster::bring_in_order(Row& row, Source& source) {
  if (row.numel == 0) return;
  const TensorImpl* exact = exact_param(source);
  const TensorImpl* copy = exact == source.param ? source.attached[kPartnerTensor] : nullptr;
  const bool travels = copy && row.extras && row.extras->pair == Pair::copy;
  const auto in_order = [&](const TensorImpl& impl) { return equal(impl.strides(), exact->strides()); };
  if (!exact->is_non_overlapping_and_dense() || !in_order(*source.param) || (travels && !in_order(*copy)))
    fail(source, std::string("it and its ") + (exact == source.param ? "copy" : "master") +
                     " do not lie dense in memory in one order, which offload='cpu' copies; make them so, or "
                     "load_state_dict(state_dict()), which brings states into the order of their params");
  if (in_order(*source.grad)) return;
  const at::NoGradGuard no_grad;
  const at::Tensor grad = tensor_of(source.grad);
  const at::Tensor made =
      held_.emplace_back(at::zeros_like(tensor_of(source.param).detach(), grad.options().requires_grad(false)));
  made.copy_(grad);
  source.grad = made.unsafeGetTensorImpl();
}

}  // namespace fusedopt
