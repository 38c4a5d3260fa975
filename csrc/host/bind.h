// What each room brings to the Python module.
#pragma once

#include "torch.h"

#include "../step.h"

namespace fusedopt {

// A rule of the package or of a shared object; throws if there is none of that name.
const Rule* rule_named(const std::string& name);

void bind_plan(py::module_& m);
void bind_clipping(py::module_& m);
void bind_codec(py::module_& m);
void bind_lbfgs(py::module_& m);
void bind_rules(py::module_& m);

}  // namespace fusedopt
