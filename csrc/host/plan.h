// The plan: an optimizer's params, gradients and states, found and checked at every step without hashing and without
// Python code, and handed to an engine as rows.
//
// A plan owns nothing of the user's. It remembers addresses, compares them, and re-reads every fact from the live
// object behind an address that matched, so it cannot be stale and keeps no tensor alive.
#pragma once

#include "../adafactor/cpu.h"
#include "../cpu/engine.h"
#include "../cuda/engine.h"
#include "../cuda/transport.h"
#include "../precision.h"
#include "bind.h"
#include "group.h"
#include "options.h"
#include "products.h"
#include "scaling.h"
#include "tensor.h"

namespace fusedopt {

class NewEntries;

using StateScales = std::array<at::Tensor, kMaxStates>;  // of those in codes

class Plan {
 public:
  using Held = std::vector<c10::intrusive_ptr<TensorImpl>>;
  // What a step that clips is told, and tells.
  struct Clipping {
    double max_norm;
    at::Tensor norm;  // undefined until it is measured
    Held held;        // what is still to be stepped
  };

  // `defaults` are values of hyper-parameters that groups may lack; `device_counters`: torch keeps the counters of this
  // optimizer on the param's device, whatever the groups say; `options` is what options.h reads.
  Plan(std::string rule, py::dict defaults, bool device_counters, py::dict options)
      : rule_name_(std::move(rule)),
        defaults_(std::move(defaults)),
        device_counters_(device_counters),
        rule_(rule_named(rule_name_)),
        given_options_(std::move(options)),
        names_(*rule_, defaults_, given_options_),
        options_(*rule_, given_options_) {
    const auto add = [&](const std::string& key, int role) { keys_.push_back({intern(key.c_str()), role}); };
    for (int k = 0; k < rule_->states; ++k) add(rule_->state_names[k], k);
    for (int c = 0; c < rule_->counters; ++c) add(rule_->counter_names[c], kMaxStates + c);
    for (int n = 0; n < kNames - kPartnerNames; ++n) add(kPartnerName[n], kOwn + kPartnerNames + n);
    add("ema", kOwn + kAverageTensor);
    add("code_order", kOwn + kOrder);
    for (int k = 0; k < rule_->states; ++k) add(std::string(rule_->state_names[k]) + "_scale", kOwn + kScaleTensor + k);
    if (!given_options_.contains("products")) return;
    const auto given = given_options_["products"].cast<py::dict>();
    const Rule* after = rule_named(given["rule"].cast<std::string>());
    // The last of its numbers is no group's: it is of the matrices.
    py::dict none;
    none[after->hyper_names[after->hypers - 1]] = 1.0;
    products_ = std::make_unique<Products>(
        Products{after, GroupNames(*after, none, py::dict()), given["multiply"], given["most_bytes"].cast<int64_t>()});
  }

  // One step of `optimizer`. Everything is checked first; then either all is written or an exception leaves all as it
  // was. Params that no engine takes come back as [(group index, [params])], nothing having been written; a second call
  // with `engine_only` then steps the others. Gradients are divided by `divisor`, unless it is None: then by
  // optimizer.grad_scale, if there is one. With `clears_grad` they are zero afterwards. `grads` is a list with one for
  // each param in its order, or None: then they are the params' own.
  py::object step(py::object optimizer, bool engine_only, py::object divisor, bool clears_grad, py::object grads,
                  Clipping* clipping = nullptr);

  // The same of gradients whose norm, of all together, is held to max_norm: one look at them serves for it and for the
  // step. Returns the norm; or None, and has done nothing, where it has to be measured by other means.
  py::object step_clipped(const py::object& optimizer, double max_norm, bool clears_grad);
  // Whether the next may do so: not for the params of the last, if these are on a device, shards or listed twice.
  bool looks_once() const { return looks_once_; }

  // Sends the groups' numbers to the device for the steps that were captured into graphs, which read them there.
  void refresh(py::object optimizer);

  // Whether the last step was skipped: a bool, or on a device that alone knows it a tensor, zero if not.
  py::object skipped() const { return scaling_.told(); }
  const std::string& rule_name() const { return rule_name_; }
  const py::dict& defaults() const { return defaults_; }
  bool device_counters() const { return device_counters_; }
  const py::dict& options() const { return given_options_; }

  // How many steps have rounded by chance: a resumed run goes on from there.
  uint64_t draws() const { return draws_; }
  void set_draws_done(uint64_t draws) { draws_ = draws; }
  // Lets processes that wait for this one's sums know that its step is refused; nothing if there are none.
  void give_up() noexcept;
  // What keeps a DTensor from being stepped as a shard; empty if nothing does, or if it is none.
  std::string why_left(const py::object& param) const;
  // Where this optimizer's params begin among those that draw, of a plan that has only some of them.
  uint32_t first_slot() const { return first_slot_; }
  void set_first_slot(uint32_t slot) { first_slot_ = slot; }
  // Whether a graph that has captured a step may still be replayed.
  bool captured();
  // Whether the last step, asked to clear gradients, has left that to the caller.
  bool shares_grads() const { return shares_grads_; }

 private:
  // The keys of a param's state dict in their order there, and what each is to the rule.
  struct Signature {
    std::vector<Ref> keys;
    std::vector<int> role;  // state k: k; counter c: kMaxStates + c; attached a, or kOrder: kOwn + a; else -1
  };
  static constexpr int kOwn = kMaxStates + kMaxCounters;
  struct Slot {
    PyObject* param;
    PyObject* state;  // its dict in optimizer.state, or nullptr
    const Signature* signature;
    int group, position;
    int listed;  // 1 where the param stands in the list for the second time
    int wave;    // 1 where it steps after another with the same memory has, be it itself
  };
  // What stands behind rows_[i].
  struct Source {
    TensorImpl *param, *grad, *state[kMaxStates], *counter[kMaxCounters], *attached[kAttached];
    void* count[kMaxCounters];    // a counter's data, float or double
    Number before[kMaxCounters];  // a counter's value, or where a device has it
    const int64_t* index;         // of a sparse gradient: the slices that it has, and how many
    int64_t slices;
    int slot;
    int device;      // where it is stepped, and its states are,
    int from;        // and where param and gradient are, if that is another; else kHost
    bool sharded;    // param, gradient and states are what this process has of DTensors,
    PyObject* spec;  // the param's
    Ref grad_spec;   // and the gradient's, held if it is another
    bool first;
    unsigned missing;  // bit a: attached a has yet to be made

    // What let the row pass when it was last looked at in full, for a step that finds all of it as it was. Only of rows
    // whose operands have the param's own strides, or are factors without gaps.
    bool settled;
    bool shaped;             // some states lie otherwise: codes in the order of its strides, factors by its sizes
    uint64_t state_version;  // of the dict that holds the objects
    PyObject *state_object[kMaxStates], *counter_object[kMaxCounters], *attached_object[kAttached];
    c10::DispatchKeySet keys, counter_keys;
    caffe2::TypeMeta param_type, grad_type, state_type[kMaxStates], counter_type[kMaxCounters],
        attached_type[kAttached];
    std::vector<int64_t> sizes, strides;  // if shaped
  };
  // What the host makes of an entry of step_: scalars for the CPU, and counters after the step.
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
  // A table and its memory, for the steps of one wave on one stream, or for one step that a graph has captured: then
  // the memory is the graph's.
  struct DeviceTable {
    cuda::Table table;
    at::Tensor memory;
    std::weak_ptr<at::Tensor> of_graph;
    cuda::Place place;
    int wave, stage;
    bool captured;
    std::vector<int> variants;             // of the groups, which a captured step cannot change
    std::vector<Products::Batch> batches;  // as of Work
  };
  // Rows that step together.
  struct Pass {
    size_t first, last;
    int wave, device, from;
  };
  // Whether any operands lie elsewhere than they did, and whether params do.
  struct Moved {
    bool rows = false, params = false;
  };
  // What a slot turned out to be: without a gradient, a row for the engine, or torch's to step.
  enum class Found { nothing, row, leftover };

  void find_rules();
  void read_groups(PyObject* groups, PyObject* state);
  bool slots_match(PyObject* state);
  void take_grads(const py::object& grads);
  const at::Tensor& grad_of(int slot) const {
    return grads_ ? unpack(grads_[slot]) : unpack(slots_[slot].param).unsafeGetTensorImpl()->grad();
  }
  void rebuild_slots(PyObject* state);
  void unsettle();
  void refuse_replaced() const;
  bool settled(int slot, size_t at, Moved& moved);
  bool all_settled();
  Found collect(int slot, size_t at);
  void enter_shards(Source& source, const at::Tensor& grad) const;
  bool shards_as_before(const Source& source, TensorImpl*& param, TensorImpl*& grad) const;
  TensorImpl* state_tensor(const Source& source, PyObject* value, const std::string& name, bool factor = false) const;
  TensorImpl* known_tensor(const Source& source, PyObject* value) const;
  Found read_state(Row& row, Source& source);
  Found collect_slices(Row& row, Source& source);
  bool lay_out_slices(Row& row, Source& source);
  std::vector<int64_t> state_shape(const Row& row, const Source& source, int k) const;
  static bool is_factor(const Row& row, int k, const TensorImpl& state, c10::IntArrayRef sizes);
  bool factor_as_before(const Row& row, const Source& source, int k, const TensorImpl& state) const;
  bool describe(const Row& row, const Source& source, Factored& t) const;
  bool lay_out_factored(Row& row, Source& source) const;
  Factored factored_row(const Row& row, const Source& source) const;
  bool grads_overlap() const;
  Found read_counter(Source& source, int c, PyObject* value);
  const Signature* signature_of(PyObject* dict);
  bool wants(const Row& row, const Source& source, int at) const;
  void read_attached(Row& row, Source& source, PyObject** found);
  void attach(Source& source, int at, PyObject* value, const std::string& name) const;
  bool has_codes(const Row& row, const Source& source) const;
  bool codes_in_order(const Row& row, const Source& source, PyObject* order) const;
  void reorder_codes(const Row& row, const Source& source, const std::vector<int64_t>& before) const;
  static constexpr const char* kNotHome =
      ", and offload='cpu' has states on the host; load_state_dict(state_dict()) moves them there";
  c10::Device home_of(const Source& source) const {
    return source.from == kHost ? source.param->device() : torch_device(kHost);
  }
  void send_home(Source& source) const;
  void bring_in_order(Row& row, Source& source);
  void run_offloaded(const Pass& pass);
  void outfit(size_t at);
  const Numbering& numbering_of(const Source& source);
  void make_attached(size_t i, py::dict& entry, const StateScales& scales);
  TensorImpl* exact_param(const Source& source) const;
  bool attached_as_before(const Row& row, const Source& source) const;
  const Options& options_of(const Source& source) const { return options_of(slots_[source.slot].group); }
  const Options& options_of(int group) const { return groups_[group].options ? *groups_[group].options : options_; }
  void set_draws(double ema_decay);
  void refuse_leftover(const py::list& leftover) const;
  bool lay_out(Row& row, Source& source);
  void address(Row& row, const Source& source, Moved& moved) const;
  py::list collect_all();
  bool clip(Clipping& clipping);
  void collect_each(bool observed, py::list& leftover);
  bool host_needs_scaling(bool leftover) const;
  void make_ready(const py::object& optimizer);
  // As torch does for rules that are indexed; a graph needs counters on the device.
  bool counts_in_python(const Source& source) const {
    return rule_->indexed && (source.device == kHost || !groups_[slots_[source.slot].group].capturable);
  }
  bool counts_on_device(const Source& source) const;
  void move_counters();
  void make_own(size_t i, py::dict& entry, StateScales& scales);
  void make_states(NewEntries& new_entries);
  void find_waves();
  void find_passes();
  void run();
  void prepare_rows(const Pass& pass);
  void run(Work& work, Row* first, Row* last, int device);
  void run_with_products(const Pass& pass);
  void run_factored(const Pass& pass);
  bool in_parts(const Source& source) const { return !in_a_family_.empty() && in_a_family_[source.slot]; }
  void find_wholes();
  void run_parts(const std::vector<size_t>& rows);
  std::vector<FactoredPart> parts_of(const std::vector<size_t>& rows) const;
  at::Tensor sums_of_all(const at::Tensor& sums);
  Held hold_all() const;
  template <class F>
  void without_gil(int64_t work, F&& f, Held* keep = nullptr);
  struct Batch;
  std::vector<Batch> batches_of(const Pass& pass) const;
  void multiply(Batch& batch);
  void sweep(Work& work, Row* first, Row* last);
  void find_families();
  void check_family(const Source& source);
  at::Tensor over_processes(const at::Tensor& every, const py::list& which);
  template <class F>
  void say_refused(F&& take_part) noexcept;
  void exchange(at::Tensor totals);
  void come_without_rows();
  void gather(std::vector<Batch>& batches);
  void add_up_over_processes(const std::vector<cpu::ChunkSums>& of_rows, const Row* first);
  void check_groups_agree() const;
  void check_one_pass() const;
  void conclude_together(const std::vector<cpu::ChunkSums>& of_rows, const Row* first, Work& work);
  void keep_in_groups();
  void keep_on_device(int device);
  void launch(Work& work, int device);
  void launch_and_add_up(cuda::Table& table, cuda::Step& step, const cuda::Place& place);
  void give_groups(cuda::Step& step) const;
  void give_batches(Work& work) const;
  void forget_graphs();
  DeviceTable& table_for(const cuda::Place& place, const Work& work, std::list<DeviceTable>& captured);
  void read_counts(Source& source) const;
  void write_counts(const Pass& pass);
  void count_in_python(size_t i, int c, double value);
  void bump_versions() const;
  template <class F>
  void whole(const Source& source, F&& f) const;

  std::string label(int group, int position) const;
  [[noreturn]] void fail(const Source& source, const std::string& what) const {
    const Slot& slot = slots_[source.slot];
    throw std::runtime_error(label(slot.group, slot.position) + ": " + what);
  }
  bool is_double(const TensorImpl& impl) const { return c10::typeMetaToScalarType(impl.dtype()) == at::kDouble; }

  std::string rule_name_;
  py::dict defaults_;
  bool device_counters_;
  const Rule* rule_;
  const cpu::Isa* isa_ = &cpu::chosen_isa();  // whose rule it is
  py::dict given_options_;
  GroupNames names_;
  Options options_;           // of groups that have none of their own
  bool has_options_ = false;  // of any group
  uint64_t draws_ = 0;
  uint32_t first_slot_ = 0;
  bool clears_grad_ = false;   // in this step's pass
  bool shares_grads_ = false;  // so that none may be cleared before all are read
  bool looks_once_ = true;     // at gradients, for their norm and for the step
  struct StateKey {
    Ref name;
    int role;
  };
  std::vector<StateKey> keys_;  // states, counters, then what options bring
  std::deque<Signature> signatures_;
  std::vector<Group> groups_;
  std::vector<Slot> slots_;
  std::vector<std::pair<PyObject*, PyObject*>> order_;  // optimizer.state, entry by entry
  PyObject* order_of_ = nullptr;                        // the dict that order_ was read from, and its version then
  uint64_t order_version_ = 0;
  Scaling scaling_;
  bool busy_ = false, capturing_ = false;
  PyObject* group_list_ = nullptr;  // borrowed, valid during a step, as is the next
  PyObject* state_of_all_ = nullptr;
  PyObject** grads_ = nullptr;  // by slot; null: each param has its own

  // rows_[i], sources_[i] and extras_[i] belong together; the first count_ of them are this step's.
  std::vector<Row> rows_;
  std::vector<Source> sources_;
  std::vector<Extras> extras_;  // of the rows that have some
  // By slot, of parts whose elements draw: what it was made of, and how they count.
  struct Numbered {
    Ref spec;
    std::vector<int64_t> order;
    Numbering numbering;
  };
  std::vector<Numbered> numbered_;
  size_t count_ = 0;
  // Of the last step's rows: whether to look at one takes no Python and cannot fail, and how many elements they have.
  bool simple_ = false;
  int64_t elements_ = 0;
  // What it costs to look at a row, in elements.
  static constexpr int64_t kLookingAt = 320;
  std::vector<Pass> passes_;
  std::vector<size_t> new_states_;  // rows whose state has yet to be made
  // Whether rows_ have changed since passes_ and new_states_ were made of them, and a number that is new whenever they
  // do.
  Moved moved_ = {true, true};
  uint64_t rows_version_ = 0;
  std::deque<Layout> layouts_;
  Work work_;                     // a pass
  std::vector<at::Tensor> held_;  // what a step makes for itself, until its end
  std::unique_ptr<Products> products_;

  // Params of which processes have parts, for a rule that adds up over them: those that one mesh divides alike.
  struct Family {
    Ref mesh;
    std::vector<bool> divided;
    std::vector<int> slots = {};
    int64_t processes = 1;  // that have a part each
  };
  std::vector<Family> families_;
  std::vector<Ref> specs_;         // by slot, what they were made of
  std::vector<bool> in_a_family_;  // by slot
  // Of the factored rule, family by family: the whole of which a process has a part, and where its sums are among those
  // of all, which are sums_ numbers: whether there is a gradient, then those of rows and of columns.
  struct Whole {
    int slot, family;
    int64_t start;
    int64_t matrices = 1, rows = 0, cols = 0;
    cpu::PartPlaces at = {};
  };
  std::vector<Whole> wholes_;
  std::vector<int> whole_of_;  // by slot
  int64_t sums_ = 0;
  int family_device_ = kNowhere;  // where their params are
  static constexpr int kNowhere = -2;
  // Whether this step has yet to add up over processes, and whether the pass that is under way does.
  bool owes_sums_ = false, adds_up_ = false;
  bool giving_up_ = false;  // what this process sends is that it refuses its step
  std::vector<std::array<double, kMaxHypers>>
      concluded_;  // of a joint rule: of each group, what a step made of its sums
  static constexpr const char* kAnotherRefuses =
      "another process has refused its step, for a reason that it says, and what is made of tensors that it has parts "
      "of cannot be made; nothing has been written";

  std::list<DeviceTable> tables_;
  std::map<int, cuda::Transport> transports_;  // by device, of params that are stepped on the host
};

}  // namespace fusedopt

#include "shards.h"
#include "unlocked.h"
