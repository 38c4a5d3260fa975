// Rules whose sums are over all params of an optimizer: what is concluded from them stays in its groups, as numbers
// where the CPU steps, and where a GPU does as tensors, which its kernels write.
#include "roster.h"

#include "../rules/rule.h"

namespace fusedopt {

void Roster::check_groups_agree() const {
  for (int i = 0; i < rule_->hypers; ++i) {
    const Scope scope = rule_->scopes[i];
    if (scope == Scope::own) continue;
    const Number* first = nullptr;
    size_t of_first = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const Number& number = groups_[g].hypers[i];
      // What a device has it alone knows.
      if (number.device || (scope == Scope::shared_or_zero && number.value == 0)) continue;
      if (!first) {
        first = &number;
        of_first = g;
      }
      if (number.value == first->value) continue;
      const auto told = [&](size_t group, double value) {
        return "param_groups[" + std::to_string(group) + "]['" + std::string(py::str(names_.hypers[i].key)) + "'] is " +
               std::string(py::str(py::float_(value)));
      };
      throw py::value_error(told(of_first, first->value) + " and " + told(g, number.value) +
                            "; its sums are of the params of all groups, so give all the same" +
                            (scope == Scope::shared_or_zero ? ", or 0 to those that are not to move" : ""));
    }
  }
}

void Roster::check_one_pass() const {
  if (passes_.size() < 2) return;
  const Source& source = sources_[passes_[1].first];
  if (passes_[1].wave > 0)
    fail(source, std::string("its rule adds up over all params once a step, and it ") +
                     (slots_[source.slot].listed > 0 ? "is listed twice; list it once"
                                                     : "shares memory with another; give it memory of its own"));
  fail(source, "it is on " + source.param->device().str() + " and others on " + sources_[0].param->device().str() +
                   ", and its rule adds up over all params, which it does on one device; make an optimizer for each");
}

void Roster::keep_in_groups(const std::vector<std::array<double, kMaxHypers>>& concluded) {
  for (size_t g = 0; g < concluded.size(); ++g) {
    PyObject* dict = PySequence_Fast_GET_ITEM(group_list_, g);
    for (int i = 0; i < rule_->hypers; ++i) {
      if (rule_->scopes[i] != Scope::kept) continue;
      PyObject* key = names_.hypers[i].key.ptr();
      PyObject* before = PyDict_GetItem(dict, key);
      const double value = concluded[g][i];
      // Of a process that has stepped nothing: its device goes on with them.
      if (count_ == 0 && before && THPVariable_Check(before) && number_on_device(unpack(before))) {
        unpack(before).fill_(value);
        continue;
      }
      // What is counted stays an int.
      const Ref now =
          before && PyLong_Check(before) ? Ref(py::int_(static_cast<int64_t>(value))) : Ref(py::float_(value));
      if (PyDict_SetItem(dict, key, now.ptr()) != 0) throw py::error_already_set();
    }
  }
}

void Roster::fetch_numbers() {
  for (size_t g = 0; g < groups_.size(); ++g)
    groups_[g].fetch_for(kHost, names_, PySequence_Fast_GET_ITEM(group_list_, g));
}

void Roster::keep_on_device(int device) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* dict = PySequence_Fast_GET_ITEM(group_list_, g);
    for (int i = 0; i < rule_->hypers; ++i) {
      if (rule_->scopes[i] != Scope::kept) continue;
      PyObject* key = names_.hypers[i].key.ptr();
      PyObject* value = PyDict_GetItem(dict, key);
      const auto fits = [&](const at::Tensor& tensor) {
        return device_index(*tensor.unsafeGetTensorImpl()) == device &&
               (tensor.scalar_type() == at::kDouble || tensor.scalar_type() == at::kFloat);
      };
      at::Tensor kept = value && THPVariable_Check(value) ? unpack(value) : at::Tensor();
      if (!kept.defined() || !fits(kept)) {
        const auto as = at::TensorOptions(torch_device(device)).dtype(at::kDouble);
        kept = kept.defined() ? kept.detach().to(as) : at::full({}, groups_[g].hypers[i].value, as);
        if (PyDict_SetItem(dict, key, wrap(kept).ptr()) != 0) throw py::error_already_set();
      }
      const bool wide = kept.scalar_type() == at::kDouble;
      groups_[g].hypers[i] = {0, kept.data_ptr(), wide ? Dtype::f64 : Dtype::f32};
    }
  }
}

}  // namespace fusedopt
