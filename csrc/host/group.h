// A param group's hyper-parameters, read from its dict at every step.
#pragma once

#include "dtensor.h"
#include "options.h"

namespace fusedopt {

// A hyper-parameter of several numbers as a list or a tuple; it may be any sequence (a configuration's own kind of
// list, an array) or a tensor. Null if it is none of `of` entries.
inline Ref entries_of(PyObject* value, int of) {
  Ref entries = py::reinterpret_steal<py::object>(PyUnicode_Check(value) ? nullptr : PySequence_Fast(value, ""));
  if (!entries) PyErr_Clear();
  return entries && PySequence_Fast_GET_SIZE(entries.ptr()) == of ? entries : Ref();
}

// Lists and tuples, which the PySequence_Fast macros read.
inline bool is_sequence(PyObject* object) { return object && (PyList_Check(object) || PyTuple_Check(object)); }

// "param 3 of group 0 ('layer.weight')"
inline std::string param_label(PyObject* groups, int group, int position) {
  std::string text = "param " + std::to_string(position) + " of group " + std::to_string(group);
  PyObject* dict = PySequence_Fast_GET_ITEM(groups, group);
  PyObject* names = PyDict_GetItemString(dict, "param_names");
  if (names && PyList_Check(names) && position < PyList_GET_SIZE(names))
    text += " ('" + std::string(py::str(PyList_GET_ITEM(names, position))) + "')";
  return text;
}

// A number out of Python: float, int, bool or a tensor of one element. In device memory it stays where it is, unread.
inline Number to_number(PyObject* value, const std::string& what) {
  if (PyFloat_CheckExact(value)) return {PyFloat_AS_DOUBLE(value)};
  if (THPVariable_Check(value)) {
    // Of a DTensor that every process has, without an operation.
    const Shard shard = shard_of(value);
    const at::Tensor& tensor = unpack(shard.local && is_whole(shard.spec) ? shard.local : value);
    if (tensor.numel() != 1)
      throw py::value_error(what + " is a tensor of " + std::to_string(tensor.numel()) + " elements; give it one");
    Number number;
    if (number_on_device(tensor) && !is_complex(*tensor.unsafeGetTensorImpl()) &&
        storage_of(*tensor.unsafeGetTensorImpl(), number.dtype)) {
      number.device = tensor.unsafeGetTensorImpl()->data();
      return number;
    }
    return {tensor.item().toDouble()};
  }
  const double number = PyFloat_AsDouble(value);
  if (number == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::type_error(what + " is " + std::string(py::str(py::type::of(value))) + "; give a number");
  }
  return {number};
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
  py::set flags;                 // those that say yes or no
  py::set optional;              // those that may be None
  py::set refused;               // options of the optimizer, which a group cannot have
  std::string beyond_torch;      // options that torch's own step leaves out, as an error says it
  py::set options;               // options that a group may have for itself,
  py::object resolve;            // and (group, index, optimizer.state) -> what options.h reads
  bool factored;                 // see Rule
  bool knows_capturable;         // the class does, whose groups have it only if it is true
  Ref params = intern("params"), maximize = intern("maximize"), differentiable = intern("differentiable"),
      capturable = intern("capturable"), fused = intern("fused");

  // `given` are values that groups may lack; `settings` are the plan's.
  GroupNames(const Rule& rule, const py::dict& given, const py::dict& settings)
      : flags(names_in(settings, "flags")),
        optional(names_in(settings, "optional")),
        refused(names_in(settings, "refused")),
        options(names_in(settings, "options")),
        factored(rule.factored),
        knows_capturable(given.contains("capturable")) {
    if (settings.contains("beyond_torch")) beyond_torch = settings["beyond_torch"].cast<std::string>();
    if (settings.contains("resolve")) resolve = settings["resolve"];
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

 private:
  static py::set names_in(const py::dict& settings, const char* name) {
    return settings.contains(name) ? py::set(settings[name]) : py::set();
  }
};

// What the last step saw of one group. Values are owned only where they are immutable numbers, so an address that
// compares equal is the same value; tensors and lists are read anew each time.
class Group {
 public:
  std::array<Number, kMaxHypers> hypers{};
  // The device that has some of them in its memory.
  static constexpr int kSeveral = -2;
  int device = kHost;
  double sign = 1;  // -1 to maximize
  bool differentiable = false;
  bool refuses_capture = false;  // it says that it is not capturable
  bool capturable = false;       // it says that it is
  bool device_counters = false;  // it wants them on the param's device
  bool fused = false;
  int variant = 0;                         // of the rule, under these hyper-parameters
  int same_as = 0;                         // the first group with equal numbers: its scalars serve both
  PyObject* params = nullptr;              // borrowed from the dict
  std::shared_ptr<const Options> options;  // its own, the same object while they say the same; null: the optimizer's
  std::optional<double> ema_decay;         // the same

  // `state` is the optimizer's.
  void read(PyObject* dict, const GroupNames& names, const Rule& rule, int index, PyObject* state) {
    if (!PyDict_Check(dict)) throw py::type_error("param_groups[" + std::to_string(index) + "] is not a dict");
    if (!unchanged(dict)) {
      parse(dict, names, rule, index, state);
      variant = rule.variant(numbers().data());
    }
    if (!params) throw py::key_error("param_groups[" + std::to_string(index) + "] has no 'params'");
    if (!is_sequence(params)) {
      throw py::type_error("param_groups[" + std::to_string(index) +
                           "]['params'] is not a list; assign a list of tensors");
    }
  }

  // The hyper-parameters as the host knows them: 1, which selects what a rule has to do for any value, stands for those
  // in device memory.
  std::array<double, kMaxHypers> numbers() const {
    std::array<double, kMaxHypers> values;
    for (int i = 0; i < kMaxHypers; ++i) values[i] = hypers[i].device ? 1 : hypers[i].value;
    return values;
  }

  // Fetches those that are in the memory of another device than `reader`; this waits for their device.
  void fetch_for(int reader, const GroupNames& names, PyObject* dict) {
    if (device == kHost || device == reader) return;
    for (size_t i = 0; i < names.hypers.size(); ++i) {
      if (!hypers[i].device) continue;
      PyObject* value = PyDict_GetItem(dict, names.hypers[i].key.ptr());
      Ref entries;
      if (names.hypers[i].index >= 0) {
        entries = entries_of(value, names.hypers[i].of);
        value = PySequence_Fast_GET_ITEM(entries.ptr(), names.hypers[i].index);
      }
      const at::Tensor& tensor = local_tensor(value);
      if (device_index(*tensor.unsafeGetTensorImpl()) != reader) hypers[i] = {tensor.item().toDouble()};
    }
  }

 private:
  enum Role : uint8_t { kIgnored, kNumber, kOption, kParams };
  struct Entry {
    Ref key, value;
    Role role;
  };
  std::vector<Entry> entries_;
  std::shared_ptr<const Options> latest_;  // of its own options,
  py::dict given_;                         // which these have said
  bool constant_ = false;
  uint64_t version_ = 0;  // of the dict when `params` was found in it

  bool unchanged(PyObject* dict) {
    const uint64_t version = version_of(dict);
    if (constant_ && version != 0 && version == version_) return true;
    params = nullptr;
    if (!constant_ || PyDict_GET_SIZE(dict) != static_cast<Py_ssize_t>(entries_.size())) return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (const Entry& entry : entries_) {
      if (!PyDict_Next(dict, &position, &key, &value) || key != entry.key.ptr()) return false;
      if (entry.role == kParams) params = value;
      if ((entry.role == kNumber || entry.role == kOption) && value != entry.value.ptr()) return false;
    }
    version_ = version;
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

  void parse(PyObject* dict, const GroupNames& names, const Rule& rule, int index, PyObject* state) {
    const auto label = [&](const Ref& key) {
      return "param_groups[" + std::to_string(index) + "]['" + std::string(py::str(key)) + "']";
    };
    const auto find = [&](const Ref& key) { return PyDict_GetItemWithError(dict, key.ptr()); };

    constant_ = false;
    device = kHost;
    version_ = 0;
    for (size_t i = 0; i < names.hypers.size(); ++i) {
      const auto& [key, entry, of] = names.hypers[i];
      PyObject* value = find(key);
      if (!value && std::isnan(names.defaults[i])) throw py::key_error(label(key) + " is missing");
      if (!value) {
        hypers[i] = {names.defaults[i]};
        continue;
      }
      std::string name = label(key);
      Ref entries;
      if (entry >= 0) {
        entries = entries_of(value, of);
        if (!entries) throw py::value_error(name + " is not a tuple of " + std::to_string(of) + " numbers");
        value = PySequence_Fast_GET_ITEM(entries.ptr(), entry);
        name += "[" + std::to_string(entry) + "]";
      }
      // torch asks of a flag no more than whether it is true. Of several numbers one that is None says that the param's
      // dtype has it. To a rule what is None is -1: no number that a group may have is negative there.
      hypers[i] = value != Py_None                                                 ? to_number(value, name)
                  : names.flags.contains(key)                                      ? Number{0}
                  : names.optional.contains(key) || (names.factored && entry >= 0) ? Number{-1}
                                                                                   : to_number(value, name);
      if (hypers[i].device) {
        const int where = device_index(*unpack(value).unsafeGetTensorImpl());
        device = device == kHost || device == where ? where : kSeveral;
      }
      if (std::isnan(hypers[i].value)) throw py::value_error(name + " is nan; set it to a number");
    }
    const auto is_true = [&](const Ref& key) {
      PyObject* value = find(key);
      const int truth = value ? PyObject_IsTrue(value) : 0;
      if (truth >= 0) return truth == 1;
      // Of a tensor of several elements, for one.
      PyErr_Clear();
      throw py::value_error(label(key) + " is neither true nor false; set it to one of them");
    };
    sign = is_true(names.maximize) ? -1 : 1;
    differentiable = is_true(names.differentiable);
    capturable = is_true(names.capturable);
    refuses_capture = (find(names.capturable) || names.knows_capturable) && !capturable;
    fused = is_true(names.fused);
    device_counters = capturable || fused || device != kHost;

    entries_.clear();
    ema_decay.reset();
    bool constant = true, own_options = false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &key, &value)) {
      const auto is = [&](const Ref& name) {
        return key == name.ptr() || (PyUnicode_Check(key) && PyUnicode_Compare(key, name.ptr()) == 0);
      };
      Role role = is(names.params) ? kParams : kIgnored;
      for (const Ref* name : {&names.maximize, &names.differentiable, &names.capturable, &names.fused})
        if (is(*name)) role = kNumber;
      for (const auto& hyper : names.hypers)
        if (is(hyper.key)) role = kNumber;
      if (role == kIgnored && names.options.contains(borrow(key))) {
        role = kOption;
        own_options = true;
        if (PyUnicode_CompareWithASCIIString(key, "ema_decay") == 0 && value != Py_None)
          ema_decay = to_number(value, label(borrow(key))).value;
      }
      if (role == kIgnored && names.refused.contains(borrow(key)))
        throw py::value_error(
            label(borrow(key)) +
            " is an option of the optimizer, one for all of its groups; delete it from the group, and "
            "give it to the constructor");
      if (role == kParams) params = value;
      if (role == kNumber) constant = constant && immutable(value);
      const bool held = role == kOption || (role == kNumber && constant);
      entries_.push_back({borrow(key), held ? borrow(value) : Ref(), role});
    }
    // Whether states may do without those that are gone is asked, too.
    if (own_options || options) {
      const py::dict given = names.resolve(borrow(dict), index, borrow(state)).cast<py::dict>();
      if (!latest_ || !given.equal(given_)) latest_ = std::make_shared<Options>(rule, given);
      given_ = given;
    }
    options = own_options ? latest_ : nullptr;
    constant_ = constant;
  }
};

}  // namespace fusedopt
