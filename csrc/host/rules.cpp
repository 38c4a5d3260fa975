// Rules from shared objects.
#include "../adafactor/cpu.h"
#include "../cpu/engine.h"
#include "../plugin.h"
#include "../rules/rule.h"
#include "bind.h"
#include "torch.h"

#include <dlfcn.h>

namespace fusedopt {
namespace {

// The names of a rule's states, and what kind of number each is.
py::dict kinds_of(const Rule& rule) {
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

py::dict describe(const Rule& rule) {
  const auto strings = [](const char* const* names, int n) { return std::vector<std::string>(names, names + n); };
  py::dict entry;
  entry["hypers"] = strings(rule.hyper_names, rule.hypers);
  entry["states"] = strings(rule.state_names, rule.states);
  entry["kinds"] = kinds_of(rule);
  entry["counters"] = strings(rule.counter_names, rule.counters);
  entry["sums"] = rule.sums;
  py::list measures;
  for (int variant = 0; variant < rule.variants; ++variant) measures.append(rule.measures(variant));
  entry["measures"] = measures;
  entry["factored"] = rule.factored;
  if (rule.hyper_defaults)
    entry["defaults"] = std::vector<double>(rule.hyper_defaults, rule.hyper_defaults + rule.hypers);
  return entry;
}

// Adds the rule of a shared object, which stays loaded, and says what it needs.
py::dict load_rule(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  const auto entry = reinterpret_cast<decltype(&fusedopt_plugin)>(dlsym(library, "fusedopt_plugin"));
  const Plugin* plugin = entry ? entry() : nullptr;
  if (!plugin || plugin->plugin_size != sizeof(Plugin) || plugin->rule_size != sizeof(Rule) ||
      plugin->row_size != sizeof(Row)) {
    dlclose(library);
    throw std::runtime_error(path + " was compiled for another version of fusedopt; compile it again");
  }
  const Rule& rule = plugin->registry.cpu->rule();
  if (!cpu::find_rule(rule.name)) registries().push_back(plugin->registry);
  return describe(rule);
}

}  // namespace

const Rule* rule_named(const std::string& name) {
  const Rule* rule = cpu::find_rule(name);
  if (!rule) throw py::value_error("no rule is named '" + name + "'");
  return rule;
}

void bind_rules(py::module_& m) {
  m.def("rules", [] {
    py::dict result;
    for (const Rule* rule : cpu::built_rules()) result[rule->name] = describe(*rule);
    result[cpu::factored_rule().name] = describe(cpu::factored_rule());
    return result;
  });
  m.def("load_rule", &load_rule, py::arg("path"));
  m.def(
      "counters",
      [](const std::string& name) {
        const Rule* rule = rule_named(name);
        return std::vector<std::string>(rule->counter_names, rule->counter_names + rule->counters);
      },
      py::arg("rule"), "The per-param counters of any rule, one from a shared object included.");
  m.def(
      "joint", [](const std::string& name) { return rule_named(name)->joint; }, py::arg("rule"),
      "Whether the sums of any rule, one from a shared object included, are over all params of an optimizer.");
  m.def(
      "states", [](const std::string& name) { return kinds_of(*rule_named(name)); }, py::arg("rule"),
      "The names of any rule's states and their kinds, one from a shared object included.");
}

}  // namespace fusedopt
