// A param group's hyper-parameters, read from its dict at every step. Included by bindings.cpp, after torch.
#pragma once

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "../step.h"

namespace fusedopt {

// An owned Python reference.
using Ref = py::object;

inline Ref borrow(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

// Lists and tuples, which the PySequence_Fast macros read.
inline bool is_sequence(PyObject* object) { return object && (PyList_Check(object) || PyTuple_Check(object)); }

// A number out of Python: float, int, bool or a tensor of one element.
inline double to_double(PyObject* value, const std::string& what) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  if (THPVariable_Check(value)) {
    const at::Tensor& tensor = THPVariable_Unpack(value);
    if (tensor.numel() != 1)
      throw py::value_error(what + " is a tensor of " + std::to_string(tensor.numel()) + " elements; give it one");
    return tensor.item().toDouble();
  }
  const double number = PyFloat_AsDouble(value);
  if (number == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::type_error(what + " is " + std::string(py::str(py::type::of(value))) + "; give a number");
  }
  return number;
}

// The names a plan looks for in a group: those of its rule, and what is common to all rules.
struct GroupNames {
  struct Hyper {
    Ref key;
    int index;  // -1, or the entry of the tuple under key
    int of;     // the tuple's length
  };
  std::vector<Hyper> hypers;
  std::vector<double> defaults;  // NaN where torch's group must have the key
  Ref params = intern("params"), maximize = intern("maximize"), differentiable = intern("differentiable");

  static Ref intern(const char* text) { return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text)); }

  GroupNames(const Rule& rule, const py::dict& given) {
    for (int i = 0; i < rule.hypers; ++i) {
      const std::string name = rule.hyper_names[i];
      const size_t dot = name.find('.');
      const int index = dot == std::string::npos ? -1 : std::stoi(name.substr(dot + 1));
      hypers.push_back({intern(name.substr(0, dot).c_str()), index, 0});
      defaults.push_back(given.contains(name.c_str()) ? given[name.c_str()].cast<double>() : NAN);
    }
    for (Hyper& hyper : hypers)
      for (const Hyper& other : hypers) hyper.of += other.key.is(hyper.key);
  }
};

// What the last step saw of one group. Values are owned only where they are immutable numbers, so an address that
// compares equal is the same value; tensors and lists are read anew each time.
class Group {
 public:
  std::array<double, kMaxHypers> hypers{};
  double sign = 1;  // -1 to maximize
  bool differentiable = false;
  int variant = 0;             // of the rule, under these hyper-parameters
  unsigned keeps = 0;          // bit k: the variant has state k
  int same_as = 0;             // the first group with equal numbers: its scalars serve both
  PyObject* params = nullptr;  // borrowed, valid during a step

  void read(PyObject* dict, const GroupNames& names, const Rule& rule, int index) {
    if (!PyDict_Check(dict)) throw py::type_error("param_groups[" + std::to_string(index) + "] is not a dict");
    if (!unchanged(dict)) {
      parse(dict, names, index);
      variant = rule.variant(hypers.data());
      keeps = 0;
      for (int k = 0; k < rule.states; ++k) keeps |= rule.keeps(variant, k) ? 1u << k : 0u;
    }
    if (!params) throw py::key_error("param_groups[" + std::to_string(index) + "] has no 'params'");
    if (!is_sequence(params)) {
      throw py::type_error("param_groups[" + std::to_string(index) +
                           "]['params'] is not a list; assign a list of tensors");
    }
  }

 private:
  enum Role : uint8_t { kIgnored, kNumber, kParams };
  struct Entry {
    Ref key, value;
    Role role;
  };
  std::vector<Entry> entries_;
  bool constant_ = false;

  bool unchanged(PyObject* dict) {
    params = nullptr;
    if (!constant_ || PyDict_GET_SIZE(dict) != static_cast<Py_ssize_t>(entries_.size())) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (const Entry& entry : entries_) {
      if (!PyDict_Next(dict, &position, &key, &value) || key != entry.key.ptr()) return false;
      if (entry.role == kParams) params = value;
      if (entry.role == kNumber && value != entry.value.ptr()) return false;
    }
    return true;
  }

  static bool immutable(PyObject* value) {
    if (PyTuple_CheckExact(value)) {
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); ++i)
        if (!immutable(PyTuple_GET_ITEM(value, i))) return false;
      return true;
    }
    return value == Py_None || PyFloat_Check(value) || PyLong_Check(value);
  }

  void parse(PyObject* dict, const GroupNames& names, int index) {
    const auto label = [&](const Ref& key) {
      return "param_groups[" + std::to_string(index) + "]['" + std::string(py::str(key)) + "']";
    };
    const auto find = [&](const Ref& key) { return PyDict_GetItemWithError(dict, key.ptr()); };

    constant_ = false;
    for (size_t i = 0; i < names.hypers.size(); ++i) {
      const auto& [key, entry, of] = names.hypers[i];
      PyObject* value = find(key);
      if (!value && std::isnan(names.defaults[i])) throw py::key_error(label(key) + " is missing");
      if (!value) {
        hypers[i] = names.defaults[i];
        continue;
      }
      if (entry < 0) {
        hypers[i] = to_double(value, label(key));
      } else {
        if (!is_sequence(value) || PySequence_Fast_GET_SIZE(value) != of)
          throw py::value_error(label(key) + " is not a tuple of " + std::to_string(of) + " numbers");
        hypers[i] = to_double(PySequence_Fast_GET_ITEM(value, entry), label(key) + "[" + std::to_string(entry) + "]");
      }
      if (std::isnan(hypers[i])) throw py::value_error(label(key) + " is nan; set it to a number");
    }
    PyObject* maximize = find(names.maximize);
    sign = maximize && PyObject_IsTrue(maximize) ? -1 : 1;
    PyObject* differentiable_value = find(names.differentiable);
    differentiable = differentiable_value && PyObject_IsTrue(differentiable_value);

    entries_.clear();
    bool constant = true;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &key, &value)) {
      const auto is = [&](const Ref& name) {
        return key == name.ptr() || (PyUnicode_Check(key) && PyUnicode_Compare(key, name.ptr()) == 0);
      };
      Role role = is(names.maximize) || is(names.differentiable) ? kNumber : is(names.params) ? kParams : kIgnored;
      for (const auto& hyper : names.hypers)
        if (is(hyper.key)) role = kNumber;
      if (role == kParams) params = value;
      if (role == kNumber) constant = constant && immutable(value);
      entries_.push_back({borrow(key), role == kNumber && constant ? borrow(value) : Ref(), role});
    }
    constant_ = constant;
  }
};

}  // namespace fusedopt
