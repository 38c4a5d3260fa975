// Adafactor (Shazeer & Stern 2018), as torch.optim.Adafactor; where transformers' steps are not relative, as its. No
// rule for a sweep over elements: what follows is the maths of its sums and of one element, which the engines' own
// kernels for it share.
#pragma once

#include "../rules/rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Adafactor {
  static constexpr const char* name = "adafactor";
  struct Hypers {
    double lr, beta2_decay, eps1, eps2, d, weight_decay, scale_parameter, relative_step, warmup_init;
  };
  static constexpr const char* hyper_names[] = {"lr",           "beta2_decay",     "eps.0",         "eps.1",      "d",
                                                "weight_decay", "scale_parameter", "relative_step", "warmup_init"};
  static constexpr const char* state_names[] = {"row_var", "col_var", "variance"};
  static constexpr Kind state_kinds[] = {Kind::factor, Kind::factor, Kind::factor};
  static constexpr const char* counter_names[] = {"step"};
  static constexpr int counters = 1, variants = 2, sums = 0;
  static constexpr bool joint = false;

  // Always in double.
  template <class T>
  struct Scalars {
    double weight, rho, keep, eps1, eps2, d, by_size;
  };

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    // transformers' warm-up has no other bound: at lr's default, 1e-2, the two meet.
    const double rho = 1 / sqrt(step), warm = 1e-6 * step;
    const double most = h.warmup_init != 0 && warm < rho ? warm : rho;
    return {power(step, h.beta2_decay),
            h.relative_step != 0 && most < h.lr ? most : h.lr,
            1 - decay_of(h.lr, h.weight_decay),
            h.eps1,
            h.eps2,
            h.d,
            h.scale_parameter};
  }

  // A group without one, where it is negative, has that of each param's dtype.
  FUSEDOPT_HD static double eps1(const Scalars<double>& c, double of_dtype) { return c.eps1 < 0 ? of_dtype : c.eps1; }

  // The new average of `count` squares.
  template <class T>
  FUSEDOPT_HD static T average(T before, double sum, double count, T weight) {
    return lerp(before, static_cast<T>(sum / count), weight);
  }

  // What row_var is divided by. NaN stays NaN.
  FUSEDOPT_HD static double mean(double sum, double rows, double eps1) {
    const double mean = sum / rows;
    return mean < eps1 ? eps1 : mean;
  }

  // The two factors of 1 / sqrt(row_var * col_var / mean). In double, where neither overflows nor loses digits.
  template <class T>
  FUSEDOPT_HD static T row_factor(T row_var, double mean) {
    return static_cast<T>(1 / sqrt(static_cast<double>(row_var) / mean));
  }
  template <class T>
  FUSEDOPT_HD static T col_factor(T col_var) {
    return static_cast<T>(1 / sqrt(static_cast<double>(col_var)));
  }

  // torch clamps the variance from below at eps1^2 before it takes the root: the inverse root from above at `limit`,
  // 1 / eps1. NaN stays NaN.
  template <class T>
  FUSEDOPT_HD static T update(T g, T row_factor, T col_factor, T limit) {
    const T factor = row_factor * col_factor;
    return g * (factor > limit ? limit : factor);
  }
  template <class T>
  FUSEDOPT_HD static T update(T g, T variance, T limit) {
    const T factor = T(1) / sqrt(variance);
    return g * (factor > limit ? limit : factor);
  }

  // As Python's max(): a NaN in a sum loses.
  FUSEDOPT_HD static double scale(const Scalars<double>& c, double squares, double update_squares, double numel) {
    const double rms = sqrt(squares / numel), excess = sqrt(update_squares / numel) / c.d;
    const double size = c.by_size == 0 ? 1 : rms > c.eps2 ? rms : c.eps2;
    return size * c.rho / (excess > 1 ? excess : 1);
  }

  template <class T>
  FUSEDOPT_HD static T step(T p, T update, T keep, T scale) {
    return fma(-scale, update, p * keep);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
