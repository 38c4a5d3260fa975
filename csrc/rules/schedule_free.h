// Schedule-Free AdamW, RAdam and SGD (Defazio et al. 2024, "The Road Less Scheduled"), as the package schedulefree.
//
// The param is y, between z, which SGD or Adam steps, and x, the average of all z: y = (1 - beta1) z + beta1 x. No rule
// here keeps x; the class puts it in y's place between trainings.
#pragma once

#include "rule.h"

namespace FUSEDOPT_NAMESPACE {

// What the three have in common. Their counters are the steps, the share of the newest z in x, and the largest learning
// rate so far. The reference sums the weights of all z: in float32, which counters are, a sum of a million equal
// weights is off by a per cent, and what they are in units of the newest is not.
struct ScheduleFree {
  struct Averaging {
    double beta1, r, weight_lr_power;
  };
  template <class T>
  struct Scalars {
    T begins, share, y_size, z_size, l2, beta2, weight2, inverse_sqrt_correction2, eps, adapts;
  };

  // The weight of z after `step` steps.
  FUSEDOPT_HD static double weight(const Averaging& h, double step, double lr_max) {
    return power(step, h.r) * power(lr_max, h.weight_lr_power);
  }

  FUSEDOPT_HD static double warmed(double lr, double step, double warmup_steps) {
    return step < warmup_steps ? lr * (step / warmup_steps) : lr;
  }

  // A step of `lr`, of which `step` says the number.
  FUSEDOPT_HD static Scalars<double> prepare(const Averaging& h, double* counters, double lr, double weight_decay) {
    const double step = counters[0], before = counters[2];
    const double sum = counters[1] > 0 ? weight(h, step - 1, before) / counters[1] : 0;
    const double lr_max = counters[2] = lr > before ? lr : before;
    const double newest = weight(h, step, lr_max);
    const double share = counters[1] = newest > 0 ? newest / (sum + newest) : 0;
    Scalars<double> c;
    c.begins = step == 1 ? 1 : 0;
    c.share = share;
    c.y_size = lr * (1 - h.beta1 * (1 - share));
    c.z_size = lr;
    c.l2 = weight_decay;
    c.beta2 = c.weight2 = c.eps = 0;
    c.inverse_sqrt_correction2 = 1;
    c.adapts = 0;
    return c;
  }

  // Along `u`, which is the gradient or what Adam makes of it.
  template <class T>
  FUSEDOPT_HD static void move(T& y, T& z, T u, const Scalars<T>& c) {
    // At first z is y, and its memory is zero: a choice between the two would cost more.
    z = fma(c.begins, y, z);
    if (c.l2 != T(0)) u = fma(c.l2, y, u);
    y = fma(-c.y_size, u, lerp(y, z, c.share));
    z = fma(-c.z_size, u, z);
  }

  template <class T>
  FUSEDOPT_HD static void adapt(T& y, T g, T& z, T& v, const Scalars<T>& c) {
    v = fma(c.beta2, v, c.weight2 * g * g);
    T root = fma(sqrt(v), c.inverse_sqrt_correction2, c.eps);
    if (c.adapts == T(0)) root = T(1);
    move(y, z, g / root, c);
  }

  static constexpr int counters = 3;
  static constexpr const char* counter_names[] = {"step", "newest_share", "lr_max"};
};

struct AdamWScheduleFree : RuleDefaults {
  static constexpr const char* name = "adamw_schedule_free";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power;
  };
  static constexpr const char* hyper_names[] = {"lr",           "betas.0",      "betas.1", "eps",
                                                "weight_decay", "warmup_steps", "r",       "weight_lr_power"};
  static constexpr const char* state_names[] = {"z", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::other, Kind::magnitude};
  static constexpr int counters = ScheduleFree::counters;
  static constexpr auto& counter_names = ScheduleFree::counter_names;

  static constexpr bool guarded = true;

  template <class T>
  using Scalars = ScheduleFree::Scalars<T>;

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1, lr = ScheduleFree::warmed(h.lr, step, h.warmup_steps);
    Scalars<double> c = ScheduleFree::prepare({h.beta1, h.r, h.weight_lr_power}, counters, lr, h.weight_decay);
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_sqrt_correction2 = 1 / sqrt(1 - pown(h.beta2, step));
    c.eps = h.eps;
    c.adapts = 1;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    ScheduleFree::adapt(p, g, s[0], s[1], c);
  }
};

struct RAdamScheduleFree : RuleDefaults {
  static constexpr const char* name = "radam_schedule_free";
  struct Hypers {
    double lr, beta1, beta2, eps, weight_decay, r, weight_lr_power, silent_sgd_phase;
  };
  static constexpr const char* hyper_names[] = {"lr",           "betas.0", "betas.1",         "eps",
                                                "weight_decay", "r",       "weight_lr_power", "silent_sgd_phase"};
  static constexpr const char* state_names[] = {"z", "exp_avg_sq"};
  static constexpr Kind state_kinds[] = {Kind::other, Kind::magnitude};
  static constexpr int counters = ScheduleFree::counters;
  static constexpr auto& counter_names = ScheduleFree::counter_names;

  static constexpr bool guarded = true;

  template <class T>
  using Scalars = ScheduleFree::Scalars<T>;

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1;
    const double beta2_power = pown(h.beta2, step), correction2 = 1 - beta2_power;
    const double rho_max = 2 / (1 - h.beta2) - 1;
    const double rho = rho_max - 2 * step * beta2_power / correction2;
    const bool rectified = rho > 4;
    double lr = h.silent_sgd_phase != 0 ? 0 : h.lr;
    if (rectified) lr = h.lr * sqrt((rho - 4) * (rho - 2) * rho_max / ((rho_max - 4) * (rho_max - 2) * rho));
    Scalars<double> c = ScheduleFree::prepare({h.beta1, h.r, h.weight_lr_power}, counters, lr, h.weight_decay);
    c.beta2 = h.beta2;
    c.weight2 = 1 - h.beta2;
    c.inverse_sqrt_correction2 = 1 / sqrt(correction2);
    c.eps = h.eps;
    c.adapts = rectified ? 1 : 0;
    return c;
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[2], const Scalars<T>& c) {
    ScheduleFree::adapt(p, g, s[0], s[1], c);
  }
};

struct SGDScheduleFree : RuleDefaults {
  static constexpr const char* name = "sgd_schedule_free";
  struct Hypers {
    double lr, momentum, weight_decay, warmup_steps, r, weight_lr_power;
  };
  static constexpr const char* hyper_names[] = {"lr",           "momentum", "weight_decay",
                                                "warmup_steps", "r",        "weight_lr_power"};
  static constexpr const char* state_names[] = {"z"};
  static constexpr int counters = ScheduleFree::counters;
  static constexpr auto& counter_names = ScheduleFree::counter_names;

  template <class T>
  using Scalars = ScheduleFree::Scalars<T>;

  FUSEDOPT_HD static Scalars<double> prepare(const Hypers& h, double* counters, bool) {
    const double step = counters[0] += 1, lr = ScheduleFree::warmed(h.lr, step, h.warmup_steps);
    return ScheduleFree::prepare({h.momentum, h.r, h.weight_lr_power}, counters, lr, h.weight_decay);
  }

  template <int variant, class T>
  FUSEDOPT_HD static void update(T& p, T g, T (&s)[1], const Scalars<T>& c) {
    ScheduleFree::move(p, s[0], g, c);
  }
};

}  // namespace FUSEDOPT_NAMESPACE
