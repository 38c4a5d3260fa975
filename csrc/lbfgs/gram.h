// The inner products of an L-BFGS history, and the recursion on them: of every pair s_i and y_i, oldest first, what the
// two loops of Nocedal's algorithm multiply. Vectors are needed before, to make the products, and after, to add them
// up with the factors found here (Chen, Wang and Zhou 2014, "Large-scale L-BFGS using MapReduce").
#pragma once

#include <cstddef>
#include <vector>

namespace fusedopt::history {

class Gram {
 public:
  size_t pairs() const { return newer_.size(); }
  void clear() { newer_.clear(); }

  void drop_oldest() {
    newer_.erase(newer_.begin());
    for (Row& row : newer_) {
      row.sy.erase(row.sy.begin());
      row.yy.erase(row.yy.begin());
    }
  }

  // A new pair by the products of its y with all s and all y, its own last.
  void append(std::vector<double> sy, std::vector<double> yy) { newer_.push_back({std::move(sy), std::move(yy)}); }

  double ys(size_t i) const { return newer_[i].sy[i]; }
  // The scale of the initial inverse Hessian.
  double scale() const { return newer_.empty() ? 1 : newer_.back().sy.back() / newer_.back().yy.back(); }

  // With the products of all s and all y with the gradient: alpha of every pair, and the factors that its s has in
  // the direction. Its y has -alpha, before the scale.
  void recur(const std::vector<double>& sg, const std::vector<double>& yg, std::vector<double>& alpha,
             std::vector<double>& factor) const {
    const size_t n = pairs();
    alpha.assign(n, 0);
    factor.assign(n, 0);
    for (size_t i = n; i-- > 0;) {
      double sq = -sg[i];
      for (size_t j = n; j-- > i + 1;) sq -= alpha[j] * newer_[j].sy[i];
      alpha[i] = sq / ys(i);
    }
    for (size_t i = 0; i < n; ++i) {
      double yq = -yg[i];
      for (size_t j = n; j-- > 0;) yq -= alpha[j] * (j > i ? newer_[j].yy[i] : newer_[i].yy[j]);
      double yr = scale() * yq;
      for (size_t j = 0; j < i; ++j) yr += factor[j] * newer_[i].sy[j];
      factor[i] = alpha[i] - yr / ys(i);
    }
  }

 private:
  // sy[i] = s_i.y and yy[i] = y_i.y for a pair's y and itself and all older pairs i.
  struct Row {
    std::vector<double> sy, yy;
  };
  std::vector<Row> newer_;
};

}  // namespace fusedopt::history
