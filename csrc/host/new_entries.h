// What a step enters in optimizer.state.
#pragma once

#include "python.h"

namespace fusedopt {

// States entered in optimizer.state, which leave it again unless they are kept. A dict that was there before, empty or
// with other keys, gets its contents back.
class NewEntries {
 public:
  explicit NewEntries(PyObject* state) : state_(state) {}
  NewEntries(const NewEntries&) = delete;

  void enter(const Ref& dict, PyObject* param, const py::dict& entry) {
    entered_.push_back({param, dict, dict ? py::reinterpret_steal<py::object>(PyDict_Copy(dict.ptr())) : Ref()});
    if ((dict ? PyDict_Update(dict.ptr(), entry.ptr()) : PyObject_SetItem(state_, param, entry.ptr())) != 0)
      throw py::error_already_set();
  }
  void keep() { entered_.clear(); }

  ~NewEntries() {
    if (entered_.empty()) return;
    const py::error_scope pending;
    for (auto one = entered_.rbegin(); one != entered_.rend(); ++one) {
      if (one->dict) {
        PyDict_Clear(one->dict.ptr());
        PyDict_Update(one->dict.ptr(), one->contents.ptr());
      } else {
        PyObject_DelItem(state_, one->param);
      }
      PyErr_Clear();
    }
  }

 private:
  struct Entered {
    PyObject* param;
    Ref dict, contents;
  };
  PyObject* state_;
  std::vector<Entered> entered_;
};

}  // namespace fusedopt
