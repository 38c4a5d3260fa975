// What each room brings to the Python module.
#pragma once

#include "torch.h"

namespace fusedopt {

void bind_plan(py::module_& m);
void bind_clipping(py::module_& m);
void bind_codec(py::module_& m);
void bind_lbfgs(py::module_& m);
void bind_rules(py::module_& m);

}  // namespace fusedopt
