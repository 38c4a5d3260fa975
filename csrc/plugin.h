// A shared object that brings one rule: the objects that each of the package's rules has, prefetch.cpp and plugin.cpp.
// The package loads it with dlopen and asks for this.
#pragma once

#include <cstddef>

#include "registry.h"

namespace fusedopt {

struct Plugin {
  // As its compiler saw them: another size is another version of the package.
  size_t plugin_size, rule_size, row_size;
  Registry registry;
};

}  // namespace fusedopt

extern "C" __attribute__((visibility("default"))) const fusedopt::Plugin* fusedopt_plugin();
