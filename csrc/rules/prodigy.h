// Prodigy, Adam whose step size is a distance that it estimates on the way (Mishchenko & Defazio 2023), as the authors'
// package prodigyopt.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

struct Prodigy : RuleDefaults {
  static constexpr const char* name = "prodigy";
  struct Hypers {
    double lr, beta1, beta2, beta3, eps, weight_decay, d, d0, d_max, d_numerator, d_coef, k, growth_rate,
        use_bias_correction, decouple, safeguard_warmup;
  };
  static constexpr const char* hyper_names[] = {
      "lr",    "betas.0",     "betas.1", "beta3", "eps",         "weight_decay",        "d",        "d0",
      "d_max", "d_numerator", "d_coef",  "k",     "growth_rate", "use_bias_correction", "decouple", "safeguard_warmup"};
  static constexpr bool joint = true;
  static constexpr Scope scopes[] = {
      Scope::shared_or_zero, Scope::shared, Scope::shared, Scope::shared, Scope::own,    Scope::own,
      Scope::kept,           Scope::shared, Scope::kept,   Scope::kept,   Scope::shared, Scope::kept,
      Scope::shared,         Scope::shared, Scope::own,    Scope::own};
  static constexpr const char* state_names[] = {"exp_avg", "exp_avg_sq", "s", "p0"};
  static constexpr Kind state_kinds[] = {Kind::average, Kind::magnitude, Kind::average, Kind::other};

  static constexpr bool guarded = true;

  template <class T>
  struct Scalars {
    T begins, counts, step_size, decay, l2, beta1, weight1, beta2, weight2, beta3, weight3, along, eps;
  };

  FUSEDOPT_HD static double beta3(const Hypers& h) { return h.beta3 < 0 ? sqrt(h.beta2) : h.beta3; }

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool first) {
    counters[0] += 1;
    const double k = h.k + 1, scale = h.d / h.d0;
    const double correction = h.use_bias_correction != 0 ? sqrt(1 - pown(h.beta2, k)) / (1 - pown(h.beta1, k)) : 1;
    const double dlr = h.d * h.lr * correction;
    // A group that is not to move averages nothing either.
    const bool moves = h.lr > 0;
    Scalars<double> c;
    c.begins = first ? 1 : 0;
    c.counts = moves ? 1 : 0;
    c.step_size = dlr;
    c.decay = h.decouple != 0 ? 1 - decay_of(dlr, h.weight_decay) : 1;
    c.l2 = h.decouple != 0 ? 0 : h.weight_decay;
    c.beta1 = moves ? h.beta1 : 1;
    c.weight1 = moves ? h.d * (1 - h.beta1) : 0;
    c.beta2 = moves ? h.beta2 : 1;
    c.weight2 = moves ? h.d * h.d * (1 - h.beta2) : 0;
    c.beta3 = moves ? beta3(h) : 1;
    c.weight3 = moves ? scale * (h.safeguard_warmup != 0 ? h.d : dlr) : 0;
    c.along = scale * dlr;
    c.eps = 0;
    return c;
  }

  // A group that is not to move has none, be it infinite.
  template <class T>
  FUSEDOPT_HD static T gradient(T p, T g, const Scalars<T>& c) {
    if (c.l2 != T(0)) g = fma(c.l2, p, g);
    return c.counts != T(0) ? g : T(0);
  }

  // How far the gradients agree with the way from the first params, and how far they could have.
  static constexpr int sums = 2;
  template <int variant, class T>
  FUSEDOPT_HD static void measure(T p, T g, T (&s)[4], const Scalars<T>& c, T (&terms)[2]) {
    g = gradient(p, g, c);
    const T p0 = fma(c.begins, p, s[3]);
    const T agreed = c.along * g * (p0 - p), could = absolute(fma(c.beta3, s[2], c.weight3 * g));
    terms[0] = c.counts != T(0) ? agreed : T(0);
    terms[1] = c.counts != T(0) ? could : T(0);
  }
  template <class T>
  FUSEDOPT_HD static void conclude(const double* sums, Hypers& h, Scalars<T>& c) {
    // Without any gradient but zeros so far there is nothing to go by.
    if (sums[1] == 0) {
      c.step_size = T(0);
      c.decay = T(1);
      c.eps = T(1);
      return;
    }
    h.k += 1;
    c.eps = static_cast<T>(h.d * h.eps);
    // Of what is not finite no distance can be made.
    if (sums[0] - sums[0] != 0 || sums[1] - sums[1] != 0) return;
    h.d_numerator = beta3(h) * h.d_numerator + sums[0];
    const double hat = h.d_coef * h.d_numerator / sums[1];
    if (h.d == h.d0 && hat > h.d) h.d = hat;
    if (hat > h.d_max) h.d_max = hat;
    const double grown = h.d * h.growth_rate;
    h.d = grown < h.d_max ? grown : h.d_max;
    c.eps = static_cast<T>(h.d * h.eps);
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[4], const Scalars<T>& c) {
    T &m = s[0], &v = s[1], &gradients = s[2], &p0 = s[3];
    g = gradient(p, g, c);
    p0 = fma(c.begins, p, p0);
    m = fma(c.beta1, m, c.weight1 * g);
    v = fma(c.beta2, v, c.weight2 * g * g);
    gradients = fma(c.beta3, gradients, c.weight3 * g);
    p = p * c.decay - c.step_size * m / (sqrt(v) + c.eps);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
