// What CUDA devices remember from step to step: the tables of the rows that step there.
#pragma once

#include "../cuda/engine.h"
#include "products.h"
#include "tensor.h"

namespace fusedopt {

class DeviceTables {
 public:
  // What tells tables apart: a stream, and of a step's rows those of one wave and stage.
  struct Use {
    cuda::Place place;
    int wave, stage;
  };
  // A table and its memory, for the steps on one stream, or for one step that a graph has captured: then the memory is
  // the graph's.
  struct DeviceTable {
    Use use;
    cuda::Table table = {};
    at::Tensor memory = {};
    bool captured = false;
    std::weak_ptr<at::Tensor> of_graph = {};
    std::vector<int> variants = {};             // of the groups, which a captured step cannot change
    std::vector<Products::Batch> batches = {};  // of a second stage, whose groups they are
  };

  // That of the steps so far, or a new one.
  DeviceTable& table_for(const Use& use);
  // Those of a captured step, once the capture has it.
  void keep(std::list<DeviceTable>& captured) { tables_.splice(tables_.end(), captured); }
  // Those of graphs that may still be replayed.
  template <class F>
  void each_captured(const F& f) {
    forget_graphs();
    for (DeviceTable& table : tables_)
      if (table.captured) f(table);
  }
  bool any_captured();
  // Forgets those of graphs that nobody can replay any more.
  void forget_graphs();

 private:
  std::list<DeviceTable> tables_;
};

}  // namespace fusedopt
