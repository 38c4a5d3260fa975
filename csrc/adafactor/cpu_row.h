// A tensor with factored second moments as a row whose elements are numbered row after row, matrix after matrix, so
// that its param, gradient, partner, average and variance come and go as those of any row do. Included once per
// instruction set.
#pragma once

#include "../cpu/tile.h"
#include "factored.h"

namespace FUSEDOPT_NAMESPACE {

using fusedopt::Factored;
using fusedopt::FactoredOperand;

class FactoredRow {
 public:
  explicit FactoredRow(const Factored& t) : extras_(t.extras) {
    const auto set = [&](int role, auto& data, fusedopt::Dtype& dtype) {
      data = t.operand[role].data;
      dtype = t.operand[role].dtype;
    };
    set(fusedopt::kFactoredParam, row_.param, row_.param_dtype);
    set(fusedopt::kFactoredGrad, row_.grad, row_.grad_dtype);
    if (t.vector) set(fusedopt::kVariance, row_.state[0], row_.state_dtype[0]);
    if (t.has_extras) row_.extras = &extras_;
    row_.numel = t.numel;
    lay_out(t);
  }
  FactoredRow(const FactoredRow&) = delete;

  template <class T>
  TileParam<T> param(T* buffer) const {
    return {row_, buffer};
  }
  template <class T>
  TileOperand<T> grad(T* buffer) const {
    return {row_, fusedopt::kGrad, row_.grad, row_.grad_dtype, buffer};
  }
  template <class T>
  TileOperand<T> variance(T* buffer) const {
    return {row_, fusedopt::kState, row_.state[0], row_.state_dtype[0], buffer};
  }

 private:
  // No layout if all operands lie in the order of the numbers.
  void lay_out(const Factored& t) {
    static constexpr int kRoles[][2] = {{fusedopt::kFactoredParam, fusedopt::kParam},
                                        {fusedopt::kFactoredGrad, fusedopt::kGrad},
                                        {fusedopt::kFactoredPartner, fusedopt::kPartner},
                                        {fusedopt::kFactoredAverage, fusedopt::kAverage},
                                        {fusedopt::kVariance, fusedopt::kState}};
    layout_.dims = t.vector ? 1 : t.leads + 2;
    const int last = layout_.dims - 1;
    for (int d = 0; d < t.leads; ++d) layout_.size[d] = t.lead_size[d];
    if (!t.vector) layout_.size[last - 1] = t.rows;
    layout_.size[last] = t.vector ? t.numel : t.cols;
    bool dense = true;
    for (const auto& [role, operand] : kRoles) {
      const FactoredOperand& from = t.operand[role];
      if (!from.data || (role == fusedopt::kVariance && !t.vector)) continue;
      int64_t* stride = layout_.stride[operand];
      for (int d = 0; d < t.leads; ++d) stride[d] = from.lead[d];
      if (!t.vector) stride[last - 1] = from.row;
      stride[last] = from.col;
      int64_t expected = 1;
      for (int d = last; d >= 0; expected *= layout_.size[d--])
        dense = dense && (stride[d] == expected || layout_.size[d] == 1);
    }
    row_.layout = dense ? nullptr : &layout_;
  }

  fusedopt::Row row_ = {};
  fusedopt::Extras extras_;
  fusedopt::Layout layout_;
};

}  // namespace FUSEDOPT_NAMESPACE
