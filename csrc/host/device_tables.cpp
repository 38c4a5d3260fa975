#include "device_tables.h"

#include "graph_memory.h"

namespace fusedopt {

// A table belongs to one stream: its memory is used in the order in which torch's allocator knows it.
DeviceTables::DeviceTable& DeviceTables::table_for(const Use& use) {
  constexpr size_t kKept = 16;
  size_t eager = 0;
  auto oldest = tables_.end();
  for (auto table = tables_.begin(); table != tables_.end(); ++table) {
    if (table->captured) continue;
    const Use& its = table->use;
    if (its.place.device == use.place.device && its.place.stream == use.place.stream && its.wave == use.wave &&
        its.stage == use.stage)
      return *table;
    if (eager++ == 0) oldest = table;
  }
  if (eager == kKept) tables_.erase(oldest);
  return tables_.emplace_back(DeviceTable{use});
}

bool DeviceTables::any_captured() {
  forget_graphs();
  return std::any_of(tables_.begin(), tables_.end(), [](const DeviceTable& table) { return table.captured; });
}

void DeviceTables::forget_graphs() {
  collect_from_graphs();
  tables_.remove_if([](const DeviceTable& table) { return table.captured && table.of_graph.expired(); });
}

}  // namespace fusedopt
