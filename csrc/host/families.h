// Params of which processes have parts, for rules that add up over them: who has parts of what, and what they add up
// together.
#pragma once

#include "../adafactor/cpu.h"
#include "dtensor.h"
#include "roster.h"

namespace fusedopt {

class Families {
 public:
  // Those that one mesh divides alike.
  struct Family {
    Ref mesh;
    std::vector<bool> divided;
    std::vector<int> slots = {};
    int64_t processes = 1;  // that have a part each
  };
  // Of a factored rule, the whole of which a process has a part, and where its sums are among those of all: whether
  // there is a gradient, then those of rows and of columns.
  struct Whole {
    int slot, family;
    int64_t start;
    int64_t matrices = 1, rows = 0, cols = 0;
    cpu::PartPlaces at = {};
    mutable at::Tensor at_there = {};  // the same one after another, where a device's kernels read them
    const int64_t* at_on(c10::Device device) const;
  };

  // `given` has what Python does for them: "sum" and "places".
  explicit Families(py::dict given) : given_(std::move(given)) {}

  // Finds them among a step's params; all of them count, also those without a gradient here, so that every process has
  // the same list.
  void find(const Roster& roster);
  bool empty() const { return families_.empty(); }
  bool has(int slot) const { return !of_slot_.empty() && of_slot_[slot]; }
  // By slot, whether it has one.
  const std::vector<bool>& of_slots() const { return of_slot_; }
  const Whole& whole_of(int slot) const { return wholes_[whole_of_[slot]]; }
  int64_t sums_of_wholes() const { return sums_; }
  // Refuses rows whose sums are not to be added up over processes.
  void check(const Roster& roster);

  // Whether this step has yet to add up over processes. A process that refuses its step does so, too.
  bool owe_sums() const { return owes_sums_; }
  void settle() { owes_sums_ = false; }
  // Calls f; if that throws, it owes none.
  template <class F>
  void owe_after(F&& f) {
    const bool owes = std::exchange(owes_sums_, false);
    f();
    owes_sums_ = owes;
  }
  bool giving_up() const { return giving_up_; }
  // Takes part in a collective as one that refuses its step.
  template <class F>
  void say_refused(F&& take_part) noexcept {
    const py::error_scope pending;
    giving_up_ = true;
    try {
      take_part();
    } catch (const std::exception&) {
      // What is to be told is why this process gives up. The others will find that it does not answer.
    }
    giving_up_ = false;
  }
  // Adds `totals`, [slot][sum], up over processes, in place; undefined: this one has nothing to add. Throws, on every
  // process, if one refuses its step.
  void exchange(const Roster& roster, at::Tensor totals);
  // The same of the wholes' sums; undefined where this process gives up. Refuses what only some processes have a
  // gradient of.
  at::Tensor sums_of_all(const Roster& roster, const at::Tensor& sums);

  static constexpr const char* kAnotherRefuses =
      "another process has refused its step, for a reason that it says, and what is made of tensors that it has parts "
      "of cannot be made; nothing has been written";

 private:
  void find_wholes(const Roster& roster);
  at::Tensor over_processes(const at::Tensor& every, const py::list& which);

  py::dict given_;
  std::vector<Family> families_;
  Specs specs_;                // what they were made of
  std::vector<bool> of_slot_;  // whether it is in one
  std::vector<Whole> wholes_;
  std::vector<int> whole_of_;  // by slot
  at::Tensor starts_;          // of wholes
  int64_t sums_ = 0;
  int device_ = kNowhere;  // where their params are
  static constexpr int kNowhere = -2;
  bool owes_sums_ = false, giving_up_ = false;
};

}  // namespace fusedopt
