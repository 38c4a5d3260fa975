// Rows of rules that step what a sparse gradient holds: its values stand for the gradient, and an index tells whose
// they are.
#include "roster.h"

namespace fusedopt {
namespace {

// Which of the param's slices, all of one width and one after the other, each value of a coalesced gradient is for.
at::Tensor slices_of(const at::Tensor& grad, c10::IntArrayRef sizes) {
  const at::Tensor indices = grad._indices();
  if (grad.sparse_dim() == 1) return indices.select(0, 0).contiguous();
  at::Tensor slices = at::zeros({indices.size(1)}, indices.options());
  for (int64_t d = 0; d < grad.sparse_dim(); ++d) slices = slices.mul(sizes[d]).add(indices.select(0, d));
  return slices;
}

// A sparse tensor may be made without a check of its indices.
bool indices_fit(const at::Tensor& grad, c10::IntArrayRef sizes) {
  const at::Tensor indices = grad._indices().contiguous();
  const int64_t* index = indices.const_data_ptr<int64_t>();
  for (int64_t d = 0; d < grad.sparse_dim(); ++d)
    for (int64_t i = 0; i < indices.size(1); ++i, ++index)
      if (*index < 0 || *index >= sizes[d]) return false;
  return true;
}

}  // namespace

Roster::Found Roster::collect_slices(Row& row, Source& source) {
  TensorImpl *param = source.param, *grad = source.grad;
  if (!plain(*param) || dispatches_to_python(*grad) || grad->is_inference() || is_complex(*param) ||
      !param->is_contiguous()) {
    if (param->is_inference()) param->bump_version();
    return Found::leftover;
  }
  if (!grad->is_sparse()) fail(source, "SparseAdam does not support dense gradients, please consider Adam instead");
  if (!equal(grad->sizes(), param->sizes()))
    fail(source, "its gradient has shape " + shape_of(*grad) + ", the param " + shape_of(*param) + "; set .grad anew");
  if (!storage_of(*param, row.param_dtype))
    fail(source, dtype_name(*param) + " params cannot be stepped; convert it to float32, float64, bfloat16 or float16");
  if (!grad_of(source.slot).is_coalesced() && number_on_device(*param) &&
      cuda::ready({source.device, current_stream(source.device)}, *rule_))
    fail(
        source,
        "its gradient is not coalesced, and to add up the rows that occur twice torch waits until the device knows how "
        "many there are, which a CUDA graph cannot; capture the step with a gradient that is coalesced, or step "
        "outside of the capture");
  // The update is not linear: slices that occur twice have to be added first.
  const at::NoGradGuard no_grad;
  const at::Tensor sum = grad_of(source.slot).detach().coalesce(), values = sum._values().contiguous();
  if (!storage_of(*values.unsafeGetTensorImpl(), row.grad_dtype) || is_complex(*grad) ||
      grad->device() != param->device())
    fail(source, "its gradient is " + dtype_name(*grad) + " on " + grad->device().str() + ", the param " +
                     dtype_name(*param) + " on " + param->device().str() + "; convert the gradient");
  // On a GPU, looking at them would wait for it.
  if (param->is_cpu() && !indices_fit(sum, param->sizes()))
    fail(source, "its gradient has indices outside of the param; check how it was made");
  const at::Tensor slices = slices_of(sum, param->sizes());
  held_.push_back(values);
  held_.push_back(slices);
  source.grad = values.unsafeGetTensorImpl();
  source.slices = slices.numel();
  source.index = source.slices > 0 ? slices.const_data_ptr<int64_t>() : nullptr;
  row.variant = static_cast<uint8_t>(groups_[slots_[source.slot].group].variant);
  row.numel = values.numel();
  const Found state = read_state(row, source);
  if (state != Found::row) return state;
  for (int k = 0; k < rule_->states; ++k)
    if (options_of(source).codes(k, *param) && source.slices > 0 && row.numel / source.slices % kCodeBlock != 0)
      fail(source, "its state '" + std::string(rule_->state_names[k]) + "' cannot be kept in codes: " +
                       std::to_string(kCodeBlock) + " elements share a scale, and its slices have " +
                       std::to_string(row.numel / source.slices) + "; give another state_dtype");
  outfit(&row - rows_.data());
  if (!lay_out_slices(row, source)) return Found::leftover;
  if (!source.first && !source.missing) {
    read_counts(source);
    address(row, source, moved_);
  }
  return Found::row;
}

// False if an operand's slices do not lie one after the other.
bool Roster::lay_out_slices(Row& row, Source& source) {
  row.layout = nullptr;
  source.settled = false;
  const auto contiguous = [](const TensorImpl* tensor) { return !tensor || tensor->is_contiguous(); };
  bool all = contiguous(source.param) && contiguous(source.attached[kPartnerTensor]);
  for (int k = 0; k < rule_->states; ++k) all = all && contiguous(source.state[k]);
  if (!all || row.numel == 0) return all;
  Layout& layout = layouts_.emplace_back();
  layout.dims = 2;
  layout.index = source.index;
  layout.size[0] = source.slices;
  layout.size[1] = row.numel / source.slices;
  for (int o = 0; o < kOperands; ++o) {
    layout.stride[o][0] = layout.size[1];
    layout.stride[o][1] = 1;
  }
  row.layout = &layout;
  return true;
}

}  // namespace fusedopt
