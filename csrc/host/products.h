// What a plan knows of matrices that are multiplied in the middle of a step.
#pragma once

#include "group.h"

namespace fusedopt {

// What a step is whose rule prepares matrices for products: these, between the rule and another that applies what comes
// out of them.
struct Products {
  const Rule* after;
  GroupNames names;
  // (group, matrices) -> (their products, what their shape does to the learning rate); the matrices are one tensor
  // [n, rows, columns] of bfloat16, which it may use up.
  py::object multiply;
  int64_t most_bytes;  // of the matrices that go through it together
  std::vector<Group> groups = {};

  // What matrices that went through it together are to the rule after it: of one of its groups, and with a ratio of
  // their own as the last of its numbers.
  struct Batch {
    int group;
    double ratio;
  };
  using Numbers = std::array<Number, kMaxHypers>;
  Numbers numbers(const Batch& batch) const {
    Numbers numbers = groups[batch.group].hypers;
    numbers[after->hypers - 1] = {batch.ratio};
    return numbers;
  }
};

}  // namespace fusedopt
