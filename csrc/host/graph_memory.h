// Memory that the launches of a captured graph use. It lives as long as the graph and all that was made of it: a plan
// may go earlier, and a graph that is captured anew leaves nothing behind.
#pragma once

#include "../cuda/engine.h"
#include "torch.h"

namespace fusedopt {

// Gives memory to the graph that a stream is being captured into. The result is of use while the graph is there.
std::weak_ptr<at::Tensor> give_to_graph(const cuda::Place& place, const at::Tensor& memory);

// CUDA says on a thread of its own, where nothing of CUDA may be called, that a graph is gone. This frees what such
// graphs have left.
void collect_from_graphs();

}  // namespace fusedopt
