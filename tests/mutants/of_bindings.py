"""Mutants of what knows torch."""

from mutant import Mutant

MUTANTS = (
    Mutant(
        "csrc/host/tensor.h",
        "for (int o = 0; merges && o < count; ++o) merges",
        "for (int o = 0; merges && o < 1; ++o) merges",
        "dimensions are merged by the first operand's strides alone",
        "tests/test_layouts.py -k sgd",
    ),
    Mutant(
        "csrc/host/collect.cpp",
        "return here(impl, dtype) && equal(impl.sizes(), sizes) && equal(impl.strides(), strides);",
        "return here(impl, dtype) && equal(impl.sizes(), sizes);",
        "a layout is compared by its sizes alone",
        "tests/test_plan.py tests/test_layouts.py tests/test_edited_params.py",
    ),
    Mutant(
        "csrc/host/collect.cpp",
        "if (row.extras ? row.extras->clears_grad != clears_grad_ : clears_grad_) return false;",
        "",
        "a settled row goes on clearing gradients, or never begins",
        "tests/test_plan.py tests/test_step.py",
    ),
    Mutant(
        "csrc/host/roster.cpp",
        "for (int k = 0; k < rule_->states; ++k) call(source.state[k]);",
        "",
        "autograd does not learn that states were written",
        "tests/test_step.py tests/test_plan.py tests/test_class.py",
    ),
    Mutant(
        "csrc/host/roster.cpp",
        "if (!grad.is_non_overlapping_and_dense()) return true;",
        "",
        "expanded gradients are cleared while others are to read them",
        "tests/test_edited_params.py",
    ),
    Mutant(
        "csrc/host/counters.cpp",
        "*static_cast<double*>(source.count[c]) = value;",
        "*static_cast<float*>(source.count[c]) = static_cast<float>(value);",
        "counters in float64 are written as float32",
        "tests/test_state.py tests/test_step.py tests/test_parity.py",
    ),
    Mutant(
        "csrc/host/roster.cpp",
        "static_cast<int>(i), seen[param]++, 0});",
        "static_cast<int>(i), seen[param], 0});",
        "a param that is listed twice is taken for two that share memory",
        "tests/test_prodigy.py",
    ),
    Mutant(
        "csrc/host/overlap.h",
        "its = earlier + 1;",
        "its = earlier;",
        "both steps of a param that is listed twice read the first's past",
        "tests/test_plan.py tests/test_step.py tests/test_shared_memory.py",
    ),
    Mutant(
        "csrc/host/overlap.h",
        "other.begin - one.begin) / size",
        "one.begin - other.begin) / size",
        "columns of one matrix that have an element in common step at once",
        "tests/test_shared_memory.py",
    ),
    Mutant(
        "csrc/host/scaling.h",
        "multiplier_ = 1 / divisor;",
        "multiplier_ = divisor;",
        "gradients are multiplied by GradScaler's scale",
        "tests/test_grad_scaler.py tests/test_amp.py",
    ),
    Mutant(
        "csrc/host/companions.cpp",
        "if (PyLong_AsLong(PyTuple_GET_ITEM(order, d)) == now[d]) continue;",
        "if (true) continue;",
        "codes stay in the order of a memory format that the param has left",
        "tests/test_codec.py tests/test_precision_state.py tests/test_precision.py",
    ),
    Mutant(
        "csrc/host/companions.cpp",
        "const double weight = 1 - groups_",
        "const double weight = groups_",
        "an average's two weights are swapped",
        "tests/test_averages.py",
    ),
    Mutant(
        "csrc/host/slices.cpp",
        "grad_of(source.slot).detach().coalesce()",
        "grad_of(source.slot).detach()._coalesced_(true)",
        "what occurs twice in a sparse gradient is stepped twice",
        "tests/test_sparse_adam.py",
    ),
    Mutant(
        "csrc/clipping/host.cpp",
        "mine.version != its.version)",
        "false)",
        "a norm is used again of gradients that were written since",
        "tests/test_grad_scaler.py tests/test_max_grad_norm.py tests/test_clipping.py",
    ),
)
