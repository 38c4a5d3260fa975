"""Mutants of the maths."""

from mutant import Mutant

MUTANTS = (
    # Rules.
    Mutant(
        "csrc/rules/adam.h",
        "1 / sqrt(1 - pown(h.beta2, step)) : 1;",
        "1 / sqrt(1 - pown(h.beta1, step)) : 1;",
        "the second correction is made of the first's factor",
        "tests/test_parity.py -k adam",
    ),
    Mutant(
        "csrc/rules/adam.h",
        "v_max = maximum(v_max, v);",
        "v_max = v;",
        "AMSGrad forgets its maximum",
        "tests/test_parity.py -k adam-amsgrad",
    ),
    Mutant(
        "csrc/rules/adam.h",
        "if (c.l2 != T(0)) g = fma(c.l2, p, g);",
        "g = fma(c.l2, p, g);",
        "no weight decay times an infinite param is NaN",
        "tests/test_parity.py tests/test_layouts.py tests/test_dtypes.py tests/test_property.py -k adam",
    ),
    Mutant(
        "csrc/rules/adagrad.h",
        "(step - 1) * h.lr_decay",
        "step * h.lr_decay",
        "a counter is off by one",
        "tests/test_parity.py -k adagrad",
    ),
    Mutant(
        "csrc/rules/sgd.h",
        "c.gradient_weight = first ? 1 : 1 - h.dampening;",
        "c.gradient_weight = 1 - h.dampening;",
        "the first momentum is damped",
        "tests/test_parity.py -k sgd-dampening",
    ),
    Mutant(
        "csrc/rules/rmsprop.h",
        "clamp_negative(fma(-g_avg, g_avg, v))",
        "fma(-g_avg, g_avg, v)",
        "the root of a variance that rounding made negative",
        "tests/test_parity.py -k negative_variance",
    ),
    Mutant(
        "csrc/rules/rprop.h",
        "agreement > T(0) ? c.eta_plus",
        "agreement >= T(0) ? c.eta_plus",
        "no agreement is taken for agreement",
        "tests/test_parity.py -k rprop",
    ),
    Mutant(
        "csrc/rules/asgd.h",
        "1 / (step - h.t0)",
        "1 / (step - h.t0 + 1)",
        "the average weighs one step too many",
        "tests/test_parity.py -k asgd",
    ),
    Mutant(
        "csrc/rules/nadam.h",
        "power(0.96, (step + 1) * h.momentum_decay)",
        "power(0.96, step * h.momentum_decay)",
        "the momentum to come is the present one",
        "tests/test_parity.py -k nadam",
    ),
    Mutant(
        "csrc/rules/radam.h",
        "c.rectified = rho > 5 ? 1 : 0;",
        "c.rectified = rho > 4 ? 1 : 0;",
        "a variance is divided by before it is known",
        "tests/test_parity.py -k radam",
    ),
    Mutant(
        "csrc/rules/adamax.h",
        "absolute(g) + c.eps",
        "absolute(g)",
        "nothing is added to what is divided by",
        "tests/test_parity.py -k adamax",
    ),
    Mutant(
        "csrc/rules/adadelta.h",
        "const T delta = sqrt(acc_delta + c.eps) / sqrt(square_avg + c.eps) * g;",
        "const T delta = sqrt(square_avg + c.eps) / sqrt(acc_delta + c.eps) * g;",
        "a quotient is upside down",
        "tests/test_parity.py -k adadelta",
    ),
    Mutant(
        "csrc/rules/lion.h",
        "sign(fma(c.beta1, m, c.weight1 * g))",
        "sign(fma(c.beta2, m, c.weight2 * g))",
        "the step is taken along the next momentum",
        "tests/test_parity.py -k lion",
    ),
    Mutant(
        "csrc/rules/lamb.h",
        "norm > 0 && sums[1] > 0 ? norm / sqrt(sums[1]) : 1;",
        "sums[1] > 0 ? norm / sqrt(sums[1]) : 1;",
        "params that are all zero never move",
        "tests/test_standalone.py -k all_zero",
    ),
    Mutant(
        "csrc/rules/lars.h",
        "trust / c.lr < 1 ? trust / c.lr : 1",
        "trust / c.lr > 1 ? trust / c.lr : 1",
        "a trust is clipped from below",
        "tests/test_parity.py -k lars",
    ),
)
