// From the total of a norm's terms to the coefficient of clipping, the same on host and device.
#pragma once

#include "../rules/rule.h"
#include "norm.h"

namespace FUSEDOPT_NAMESPACE {

struct Clip {
  double norm;
  double coefficient;  // at most 1
  double divisor;      // scale / coefficient: what to divide gradients by that are still scaled
};

FUSEDOPT_HD double root(double total, const fusedopt::NormOrder& order) {
  switch (order.term) {
    case fusedopt::Term::square:
      return sqrt(total);
    case fusedopt::Term::power:
      return power(total, 1 / order.p);
    default:
      return total;
  }
}

// Rounded where torch rounds: its division of a number by a tensor is a reciprocal and a product.
template <class T>
FUSEDOPT_HD Clip clip_in(double total, double scale, const fusedopt::ClipRequest& request) {
  const T norm = static_cast<T>(root(total, request.order) / scale);
  const T coefficient = T(1) / (norm + T(1e-6)) * static_cast<T>(request.max_norm);
  const double held = static_cast<double>(coefficient > T(1) ? T(1) : coefficient);
  return {static_cast<double>(norm), held, scale / held};
}

FUSEDOPT_HD Clip clip(double total, double scale, const fusedopt::ClipRequest& request) {
  return request.wide ? clip_in<double>(total, scale, request) : clip_in<float>(total, scale, request);
}

}  // namespace FUSEDOPT_NAMESPACE
