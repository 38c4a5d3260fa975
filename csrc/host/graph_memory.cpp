#include "graph_memory.h"

#include <mutex>

namespace fusedopt {
namespace {

using Held = std::shared_ptr<at::Tensor>;

// Never destroyed: a graph may be the last thing in a process.
std::mutex& g_mutex = *new std::mutex;
std::vector<Held>& g_left = *new std::vector<Held>;

void leave(void* held) {
  const std::unique_ptr<Held> its(static_cast<Held*>(held));
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_left.push_back(std::move(*its));
}

}  // namespace

std::weak_ptr<at::Tensor> give_to_graph(const cuda::Place& place, const at::Tensor& memory) {
  auto held = std::make_unique<Held>(std::make_shared<at::Tensor>(memory));
  const std::weak_ptr<at::Tensor> its = *held;
  cuda::hold_for_graph(place, held.release(), leave);
  return its;
}

void collect_from_graphs() {
  std::vector<Held> left;
  {
    const std::lock_guard<std::mutex> lock(g_mutex);
    left.swap(g_left);
  }
}

}  // namespace fusedopt
