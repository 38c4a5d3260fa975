#include "plugin.h"

const fusedopt::Plugin* fusedopt_plugin() {
  using namespace fusedopt;
  static const Plugin plugin = {sizeof(Plugin), sizeof(Rule), sizeof(Row), linked_rules()};
  return &plugin;
}
