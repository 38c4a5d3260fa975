// Python objects as the bindings hold them.
#pragma once

#include "torch.h"

namespace fusedopt {

// An owned Python reference.
using Ref = py::object;

inline Ref borrow(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

// A number that no two contents of any dicts share, so that a dict whose number is the same has the same keys and
// values (PEP 509). 0 where Python does not keep it, which is from 3.14 on.
inline uint64_t version_of(PyObject* dict) {
#if PY_VERSION_HEX < 0x030E0000
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#pragma GCC diagnostic pop
#else
  return 0;
#endif
}

// From this many elements on other Python threads may run while an engine does. Below that it is done sooner than they
// would begin. Who calls holds what they could free.
constexpr int64_t kReleaseGil = 1 << 21;

template <class F>
void without_gil(int64_t elements, F&& f) {
  if (elements < kReleaseGil) return f();
  const py::gil_scoped_release release;
  f();
}

inline Ref intern(const char* text) { return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text)); }

}  // namespace fusedopt
