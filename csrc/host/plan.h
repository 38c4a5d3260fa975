// The plan: a step is a short program over the rows of a roster. It is divided into passes of rows that step together,
// each of which an engine runs, and everything that can be refused is refused before the first of them.
#pragma once

#include "../cuda/transport.h"
#include "bind.h"
#include "device_tables.h"
#include "families.h"
#include "norm_shares.h"
#include "roster.h"
#include "scaling.h"

namespace fusedopt {

class Plan {
 public:
  // What a step that clips is told, and tells.
  struct Clipping {
    double max_norm;
    at::Tensor norm;    // undefined until it is measured
    Roster::Held held;  // what is still to be stepped
  };

  // `defaults` are values of hyper-parameters that groups may lack; `device_counters`: torch keeps the counters of this
  // optimizer on the param's device, whatever the groups say; `options` is what options.h reads.
  Plan(std::string rule, py::dict defaults, bool device_counters, py::dict options)
      : rule_name_(std::move(rule)),
        defaults_(std::move(defaults)),
        device_counters_(device_counters),
        options_(std::move(options)),
        families_(options_),
        roster_(rule_name_, defaults_, device_counters_, options_, families_) {}
  Plan(const Plan&) = delete;

  // One step of `optimizer`. Everything is checked first; then either all is written or an exception leaves all as it
  // was. Params that no engine takes come back as [(group index, [params])], nothing having been written; a second call
  // with `engine_only` then steps the others. Gradients are divided by `divisor`, unless it is None: then by
  // optimizer.grad_scale, if there is one. With `clears_grad` they are zero afterwards. `grads` is what Roster::read()
  // takes.
  py::object step(py::object optimizer, bool engine_only, py::object divisor, bool clears_grad, py::object grads,
                  Clipping* clipping = nullptr);

  // The same of gradients whose norm, of all together, is held to max_norm: one look at them serves for it and for the
  // step. Returns the norm; or None, and has done nothing, where it has to be measured by other means.
  py::object step_clipped(const py::object& optimizer, double max_norm, bool clears_grad);
  // Whether the next may do so: not for the params of the last, if these are on a device or listed twice.
  bool looks_once() const { return looks_once_; }

  // Sends the groups' numbers to the device for the steps that were captured into graphs, which read them there.
  void refresh(py::object optimizer);
  // Whether a graph that has captured a step may still be replayed.
  bool captured() { return tables_.any_captured(); }

  // Whether the last step was skipped: a bool, or on a device that alone knows it a tensor, zero if not.
  py::object skipped() const { return scaling_.told(); }
  const std::string& rule_name() const { return rule_name_; }
  const py::dict& defaults() const { return defaults_; }
  bool device_counters() const { return device_counters_; }
  const py::dict& options() const { return options_; }

  // How many steps have rounded by chance: a resumed run goes on from there.
  uint64_t draws() const { return draws_; }
  void set_draws_done(uint64_t draws) { draws_ = draws; }
  // Where this optimizer's params begin among those that draw, of a plan that has only some of them.
  uint32_t first_slot() const { return first_slot_; }
  void set_first_slot(uint32_t slot) { first_slot_ = slot; }
  // Lets processes that wait for this one's sums know that its step is refused; nothing if there are none.
  void give_up() noexcept;
  std::string why_left(const py::object& param) const { return roster_.why_left(param); }
  // Whether the last step, asked to clear gradients, has left that to the caller.
  bool shares_grads() const { return shares_grads_; }

 private:
  using Pass = Roster::Pass;
  using Source = Roster::Source;
  // What the host makes of an entry of a step: scalars for the CPU, and counters after the step.
  struct Prepared {
    double scalars[kMaxScalars], after[kMaxCounters];
  };
  // Rows that go to an engine together, as entries and groups that `step` has, which is the CUDA engine's form of it.
  struct Work {
    cuda::Step step;
    std::vector<Prepared> prepared;  // for each entry
    int wave = 0, stage = 0;
    bool divides = true;                     // gradients, as scaling_ says
    std::vector<Products::Batch> batches;    // of a second stage, whose groups they are
    std::vector<Products::Numbers> numbers;  // theirs
  };

  // Tensors as they were, for a step that is found to be none.
  class Before {
   public:
    void keep(const TensorImpl* tensor) { kept_.emplace_back(tensor_of(tensor), tensor_of(tensor).clone()); }
    void put_back() const {
      for (const auto& [tensor, copy] : kept_) tensor.copy_(copy);
    }

   private:
    std::vector<std::pair<at::Tensor, at::Tensor>> kept_;
  };

  // While it lives, a step has an exchange.
  class Exchanging {
   public:
    Exchanging(cuda::Step& step, const cuda::Exchange& exchange) : step_(step) { step.exchange = &exchange; }
    ~Exchanging() { step_.exchange = nullptr; }
    Exchanging(const Exchanging&) = delete;

   private:
    cuda::Step& step_;
  };

  const Rule& rule() const { return roster_.rule(); }

  // Before anything is written.
  bool clip(Clipping& clipping);
  bool host_needs_scaling(bool leftover) const;
  void make_ready(const py::object& optimizer);

  // The passes.
  void run();
  void prepare_rows(const Pass& pass);
  void run(Work& work, Row* first, Row* last, int device);
  void sweep(Work& work, Row* first, Row* last);
  void launch(Work& work, int device);
  void put(Work& work, int device);
  void give_groups(cuda::Step& step) const;
  void write_counts(const Pass& pass);
  // Calls f while other Python threads may run, if that is worth it. What they could free is held until the end, or for
  // as long as `keep` lives.
  template <class F>
  void without_gil(int64_t work, F&& f, Roster::Held* keep = nullptr);

  // Passes of their own kinds: with states on the host, with products of matrices in the middle, with factors.
  void run_offloaded(const Pass& pass);
  void run_with_products(const Pass& pass);
  struct Batch;
  std::vector<Batch> batches_of(const Pass& pass) const;
  void multiply(Batch& batch);
  void gather(std::vector<Batch>& batches);
  void give_batches(Work& work) const;
  void run_factored(const Pass& pass);
  Factored factored_row(size_t i) const;
  void run_parts(const std::vector<size_t>& rows);
  void run_parts_on_device(const Pass& pass, std::vector<Factored>& tensors);
  void describe_whole(size_t i, Factored& whole) const;
  std::vector<FactoredPart> parts_of(const std::vector<size_t>& rows) const;

  // Sums over processes.
  void add_up_over_processes(const std::vector<cpu::ChunkSums>& of_rows, const Row* first);
  void conclude_together(const std::vector<cpu::ChunkSums>& of_rows, const Row* first, Work& work);
  void come_without_rows();
  void keep_states(size_t i, Before& before) const;
  void keep_counters(size_t i, Before& before) const;

  std::string rule_name_;
  py::dict defaults_;
  bool device_counters_;
  py::dict options_;
  Families families_;
  Roster roster_;
  NormShares norm_;
  Scaling scaling_;
  DeviceTables tables_;
  std::map<int, cuda::Transport> transports_;  // by device, of params that are stepped on the host
  Work work_;                                  // a pass

  uint64_t draws_ = 0;
  uint32_t first_slot_ = 0;
  bool shares_grads_ = false;  // so that none may be cleared before all are read
  bool looks_once_ = true;     // at gradients, for their norm and for the step
  bool busy_ = false, capturing_ = false;
  bool adds_up_ = false;                                   // over processes, in the pass that is under way
  std::vector<std::array<double, kMaxHypers>> concluded_;  // of a joint rule: of each group, what a step made of its
                                                           // sums
};

template <class F>
void Plan::without_gil(int64_t work, F&& f, Roster::Held* keep) {
  if (work < kReleaseGil) return f();
  Roster::Held held = roster_.hold_all();
  struct Busy {
    bool& flag;
    explicit Busy(bool& flag) : flag(flag) { flag = true; }
    ~Busy() { flag = false; }
  } const busy(busy_);
  fusedopt::without_gil(work, f);
  if (keep) *keep = std::move(held);
}

}  // namespace fusedopt
