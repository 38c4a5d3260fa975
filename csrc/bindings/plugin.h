// Rules from shared objects. Included by bindings.cpp, after torch.
#pragma once

#include <dlfcn.h>

#include "../cpu/engine.h"
#include "../cuda/engine.h"

namespace fusedopt {

// The names of a rule's states, and what kind of number each is.
inline py::dict kinds_of(const Rule& rule) {
  const auto name = [](Kind kind) {
    switch (kind) {
      case Kind::average:
        return "average";
      case Kind::magnitude:
        return "magnitude";
      case Kind::total:
        return "total";
      case Kind::factor:
        return "factor";
      case Kind::other:
        break;
    }
    return "other";
  };
  py::dict kinds;
  for (int k = 0; k < rule.states; ++k)
    kinds[rule.state_names[k]] = name(rule.state_kinds ? rule.state_kinds[k] : Kind::other);
  return kinds;
}

inline py::dict describe(const Rule& rule) {
  const auto strings = [](const char* const* names, int n) { return std::vector<std::string>(names, names + n); };
  py::dict entry;
  entry["hypers"] = strings(rule.hyper_names, rule.hypers);
  entry["states"] = strings(rule.state_names, rule.states);
  entry["kinds"] = kinds_of(rule);
  entry["counters"] = strings(rule.counter_names, rule.counters);
  entry["sums"] = rule.sums;
  entry["factored"] = rule.factored;
  if (rule.hyper_defaults)
    entry["defaults"] = std::vector<double>(rule.hyper_defaults, rule.hyper_defaults + rule.hypers);
  return entry;
}

// Adds the rule of a shared object, which stays loaded, and says what it needs.
inline py::dict load_rule(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  const auto entry = reinterpret_cast<decltype(&fusedopt_plugin)>(dlsym(library, "fusedopt_plugin"));
  const Plugin* plugin = entry ? entry() : nullptr;
  if (!plugin || plugin->plugin_size != sizeof(Plugin) || plugin->rule_size != sizeof(Rule) ||
      plugin->row_size != sizeof(Row)) {
    dlclose(library);
    throw std::runtime_error(path + " was compiled for another version of fusedopt; compile it again");
  }
  int count = 0;
  const Rule& rule = *plugin->rules[0](count);
  if (!cpu::find_rule(rule.name)) {
    cpu::add_rules(*plugin);
    if (plugin->kernels) cuda::add_kernels(*plugin->kernels);
  }
  return describe(rule);
}

}  // namespace fusedopt
