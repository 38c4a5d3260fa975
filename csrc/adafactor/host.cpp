// Steps of a rule whose second moments are factored (Adafactor): rows as its engines want them, with the sums of rows
// and columns in the states' place.
#include "../host/plan.h"

namespace fusedopt {

// The shape of state k of a param: that of what this process has of it, but for the sums of its rows and columns, which
// are those of the whole.
std::vector<int64_t> Roster::state_shape(const Row& row, const Source& source, int k) const {
  if (!rule_->factored || row.variant == 1) return source.param->sizes().vec();
  std::vector<int64_t> shape = unpack(slots_[source.slot].param).sizes().vec();
  shape[shape.size() - (k == 0 ? 1 : 2)] = 1;
  return shape;
}

// Whether state k is what state_shape() says for a param of these sizes, without gaps.
bool Roster::is_factor(const Row& row, int k, const TensorImpl& state, c10::IntArrayRef sizes) {
  const size_t dims = sizes.size();
  if (row.variant == 1 || state.sizes().size() != dims || !state.is_contiguous()) return false;
  for (size_t d = 0; d < dims; ++d)
    if (state.sizes()[d] != (d == dims - (k == 0 ? 1 : 2) ? 1 : sizes[d])) return false;
  return true;
}

// The same of one that was, for a row whose param is as it was. Not inlined: other rows would pay for it in registers.
__attribute__((noinline)) bool Roster::factor_as_before(const Row& row, const Source& source, int k,
                                                        const TensorImpl& state) const {
  return rule_->factored && state.key_set() == source.keys && state.dtype() == source.state_type[k] &&
         device_index(state) == source.device && is_factor(row, k, state, source.param->sizes());
}

// Rows, columns and leading dimensions of matrices of these sizes. False if the latter are too many.
bool describe_matrices(Factored& t, c10::IntArrayRef sizes, const TensorImpl* const (&operands)[kFactoredOperands]) {
  const auto each = [&](auto&& f) {
    for (int o = 0; o < kFactoredOperands; ++o)
      if (operands[o]) f(t.operand[o], *operands[o]);
  };
  const int dims = static_cast<int>(sizes.size());
  t.matrices = 1;
  t.leads = 0;
  t.rows = sizes[dims - 2];
  t.cols = sizes[dims - 1];
  each([&](FactoredOperand& operand, const TensorImpl& tensor) {
    operand.row = tensor.strides()[dims - 2];
    operand.col = tensor.strides()[dims - 1];
  });
  for (int d = 0; d + 2 < dims; ++d) {
    const int64_t size = sizes[d];
    t.matrices *= size;
    if (size == 1) continue;
    bool merges = t.leads > 0;
    each([&](FactoredOperand& operand, const TensorImpl& tensor) {
      merges = merges && operand.lead[t.leads - 1] == tensor.strides()[d] * size;
    });
    if (!merges && ++t.leads > kMaxLead) return false;
    int64_t& merged = t.lead_size[t.leads - 1];
    merged = merges ? merged * size : size;
    each([&](FactoredOperand& operand, const TensorImpl& tensor) { operand.lead[t.leads - 1] = tensor.strides()[d]; });
  }
  return true;
}

bool Roster::describe(const Row& row, const Source& source, Factored& t) const {
  TensorImpl* exact = exact_param(source);
  const TensorImpl* operands[kFactoredOperands] = {exact, source.grad};
  t.vector = row.variant == 1;
  const bool part = in_parts(source);
  operands[kRowVar] = t.vector ? source.state[2] : part ? nullptr : source.state[0];
  operands[kColVar] = t.vector || part ? nullptr : source.state[1];
  operands[kFactoredPartner] = exact == source.param ? source.attached[kPartnerTensor] : source.param;
  operands[kFactoredAverage] = source.attached[kAverageTensor];
  t.numel = row.numel;
  if (!t.vector) return describe_matrices(t, exact->sizes(), operands);
  t.matrices = 1;
  t.leads = 0;
  t.rows = (t.numel + kChunk - 1) / kChunk;
  t.cols = std::min<int64_t>(t.numel, kChunk);
  for (int o = 0; o < kFactoredOperands; ++o) {
    if (!operands[o]) continue;
    t.operand[o].col = exact->dim() == 1 ? operands[o]->strides()[0] : 1;
    t.operand[o].row = kChunk * t.operand[o].col;
  }
  return true;
}

bool Roster::lay_out_factored(Row& row, Source& source) const {
  row.layout = nullptr;
  source.settled = false;
  const auto shares = [](const TensorImpl& tensor) {
    for (size_t d = 0; d < tensor.sizes().size(); ++d)
      if (tensor.sizes()[d] > 1 && tensor.strides()[d] == 0 && tensor.numel() > 0) return true;
    return false;
  };
  if (shares(*source.param))
    fail(source,
         "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
         "Please clone() the tensor before performing the operation.");
  for (int k = 0; k < rule_->states; ++k)
    if (source.state[k] && shares(*source.state[k]))
      fail(source, std::string("its state '") + rule_->state_names[k] + "' shares memory among its elements; clone it");
  // A new state is dense, so that it adds no dimension.
  if (source.first || source.missing) {
    int leads = 0;
    for (int64_t d = 0; d + 2 < source.param->dim(); ++d) leads += source.param->sizes()[d] != 1;
    return leads <= kMaxLead;
  }
  const TensorImpl& param = *source.param;
  source.settled = !source.sharded && param.is_non_overlapping_and_dense();
  const auto alike = [&](const TensorImpl* tensor) { return !tensor || equal(tensor->strides(), param.strides()); };
  for (const TensorImpl* tensor : {source.grad, source.attached[kPartnerTensor], source.attached[kAverageTensor]})
    source.settled = source.settled && alike(tensor);
  for (int k = 0; k < rule_->states; ++k)
    if (source.state[k] && !is_factor(row, k, *source.state[k], param.sizes()))
      source.settled = source.settled && row.variant == 1 && alike(source.state[k]);
  Factored described = {};
  return describe(row, source, described);
}

// A row with its numbers.
Factored Plan::factored_row(size_t i) const {
  const Row& row = roster_.row(i);
  const Source& source = roster_.source(i);
  Factored t = {};
  roster_.describe(row, source, t);
  const auto set = [&](int role, const void* data, Dtype dtype) {
    t.operand[role].data = const_cast<void*>(data);
    t.operand[role].dtype = dtype;
  };
  set(kFactoredParam, row.param, row.param_dtype);
  set(kFactoredGrad, row.grad, row.grad_dtype);
  for (int k = 0; k < rule().states; ++k)
    if (source.state[k]) set(k == 1 ? kColVar : kRowVar, row.state[k], row.state_dtype[k]);
  t.has_extras = row.extras != nullptr;
  if (row.extras) {
    t.extras = *row.extras;
    set(kFactoredPartner, t.extras.partner, t.extras.partner_dtype);
    set(kFactoredAverage, t.extras.average, t.extras.average_dtype);
  }
  // torch.finfo(dtype).eps of what the arithmetic keeps of the param.
  const at::ScalarType dtype =
      source.attached[kPartnerTensor] ? at::kFloat : c10::typeMetaToScalarType(source.param->dtype());
  t.eps = dtype == at::kDouble ? 0x1p-52 : dtype == at::kFloat ? 0x1p-23 : dtype == at::kHalf ? 0x1p-10 : 0x1p-7;
  t.scalars = work_.prepared[row.entry].scalars;
  t.entry = row.entry;
  t.slot = row.slot;
  return t;
}

void Plan::run_factored(const Pass& pass) {
  std::vector<Factored> tensors;
  std::vector<size_t> parts;
  int64_t work = 0;
  for (size_t i = pass.first; i < pass.last; ++i) {
    if (pass.device == kHost && roster_.in_parts(roster_.source(i))) {
      parts.push_back(i);
      continue;
    }
    tensors.push_back(factored_row(i));
    work += roster_.row(i).numel;
  }
  if (adds_up_ && pass.device == kHost) run_parts(parts);
  if (pass.device == kHost)
    return without_gil(
        work, [&] { cpu::step_factored(tensors.data(), tensors.data() + tensors.size(), at::get_num_threads()); });
  work_.step.factored = tensors.data();
  if (adds_up_) return run_parts_on_device(pass, tensors);
  run(work_, roster_.begin(pass), roster_.end(pass), pass.device);
}

}  // namespace fusedopt
