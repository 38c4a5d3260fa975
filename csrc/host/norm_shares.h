// Which params have a part in the norm that all processes make together.
#pragma once

#include "python.h"

namespace fusedopt {

// DTensors that one mesh divides alike are a family. All params count, also those without a gradient here, so that
// every process has the same list.
struct NormShares {
  struct Family {
    Ref mesh;
    std::vector<bool> divided;
  };
  std::vector<Family> families;
  std::vector<size_t> family;  // by slot: 0 of an ordinary param, else its place in families and 1
  std::vector<Ref> specs;      // by slot, what they were made of
  bool wide = false;           // whether a param of theirs is in float64
  Ref reduce;                  // of Python's, made for them: what processes have, and whether this one refuses its step
  bool owed = false;           // whether this step has yet to call it
};

}  // namespace fusedopt
