// The roster: an optimizer's params, gradients and states, found and checked at every step without hashing and without
// Python code, as rows that an engine can step.
//
// A roster owns nothing of the user's. It remembers addresses, compares them, and re-reads every fact from the live
// object behind an address that matched, so it cannot be stale and keeps no tensor alive. A step reads the groups,
// collects rows and completes those that are new; what is done with rows is plan.h's.
#pragma once

#include "../adafactor/cpu.h"
#include "../cpu/engine.h"
#include "../cuda/engine.h"
#include "../precision.h"
#include "group.h"
#include "options.h"
#include "products.h"
#include "tensor.h"

namespace fusedopt {

class Families;
class NewEntries;

using StateScales = std::array<at::Tensor, kMaxStates>;  // of those in codes

class Roster {
 public:
  // The keys of a param's state dict in their order there, and what each is to the rule.
  struct Signature {
    std::vector<Ref> keys;
    std::vector<int> role;  // state k: k; counter c: kMaxStates + c; attached a, or kOrder: kOwn + a; else -1
  };
  struct Slot {
    PyObject* param;
    PyObject* state;  // its dict in optimizer.state, or nullptr
    const Signature* signature;
    int group, position;
    int listed;  // 1 where the param stands in the list for the second time
    int wave;    // 1 where it steps after another with the same memory has, be it itself
  };
  // What stands behind a row. What a step compares comes first, by fours and threes of which most rules use the first:
  // a line of memory is waited for in a cold step, and this is four of some forty.
  struct alignas(64) Source {
    TensorImpl *param, *grad;
    int slot;
    int device;    // where it is stepped, and its states are,
    int from;      // and where param and gradient are, if that is another; else kHost
    bool sharded;  // param, gradient and states are what this process has of DTensors
    bool first;
    // What let the row pass when it was last looked at in full, for a step that finds all of it as it was. Only of rows
    // whose operands have the param's own strides, or are factors without gaps.
    bool settled;
    bool shaped;             // some states lie otherwise: codes in the order of its strides, factors by its sizes
    uint64_t state_version;  // of the dict that holds the objects
    c10::DispatchKeySet keys, counter_keys;
    caffe2::TypeMeta param_type, grad_type, state_type[kMaxStates], counter_type[kMaxCounters];
    TensorImpl* state[kMaxStates];
    PyObject* state_object[kMaxStates];
    TensorImpl* counter[kMaxCounters];
    PyObject* counter_object[kMaxCounters];
    void* count[kMaxCounters];    // a counter's data, float or double
    Number before[kMaxCounters];  // a counter's value, or where a device has it

    // Of few rows.
    TensorImpl* attached[kAttached];
    PyObject* attached_object[kAttached];
    caffe2::TypeMeta attached_type[kAttached];
    unsigned missing;      // bit a: attached a has yet to be made
    const int64_t* index;  // of a sparse gradient: the slices that it has, and how many
    int64_t slices;
    PyObject* spec;                       // the param's,
    Ref grad_spec;                        // and the gradient's, held if it is another
    std::vector<int64_t> sizes, strides;  // if shaped
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
  using Held = std::vector<c10::intrusive_ptr<TensorImpl>>;

  // `families` are of the params, once a step has read them.
  Roster(const std::string& rule, const py::dict& defaults, bool device_counters, const py::dict& options,
         const Families& families);

  // A step's way through it, in this order.

  // Rules are those of an instruction set, and another may have been chosen since the last step.
  void find_rules(const std::string& name);
  // The groups, and whose params and states these are; whether any of them is another than at the last step. Both are
  // borrowed until the step is over. `grads` is a list with one for each param in its order, or None: then they are the
  // params' own.
  bool read(PyObject* groups, PyObject* state, const py::object& grads);
  // The groups alone.
  void read_groups(PyObject* groups, PyObject* state);
  // What engines step, as rows, and the rest as [(group index, [params])]. With `clears_grad` rows have their gradients
  // zeroed.
  py::list collect(bool clears_grad);
  void refuse_replaced() const;
  void refuse_leftover(const py::list& leftover) const;
  // Of a rule whose sums are over all params: that all are in one pass.
  void check_one_pass() const;
  // Counters from a checkpoint, or from steps without a GradScaler, come to the param's device. `device_decides`: it
  // alone knows whether the step takes place.
  void move_counters(bool device_decides);
  // Makes states for the rows that have none, or lack some, and completes these.
  void make_states(NewEntries& new_entries, bool device_decides);
  // What changes from step to step of rows that draw or have an average.
  void set_draws(uint64_t key, uint32_t first_slot, double ema_decay);
  // What a step gave counter c of row i.
  void count(size_t i, int c, double value);
  // Tells autograd of the writes.
  void bump_versions() const;
  // Forgets what a step has lent.
  void release();

  // What it has found.

  const Rule& rule() const { return *rule_; }
  const GroupNames& names() const { return names_; }
  std::vector<Group>& groups() { return groups_; }
  const std::vector<Group>& groups() const { return groups_; }
  PyObject* group_dict(size_t g) const { return PySequence_Fast_GET_ITEM(group_list_, g); }
  // That of a second rule, and of matrices between both.
  Products* products() const { return products_.get(); }
  const std::vector<Slot>& slots() const { return slots_; }
  const std::vector<Pass>& passes() const { return passes_; }
  size_t count() const { return count_; }
  Row& row(size_t i) { return rows_[i]; }
  const Row& row(size_t i) const { return rows_[i]; }
  Source& source(size_t i) { return sources_[i]; }
  const Source& source(size_t i) const { return sources_[i]; }
  // Of source i.
  const Slot& slot(size_t i) const { return slots_[sources_[i].slot]; }
  const Slot& slot(const Source& source) const { return slots_[source.slot]; }
  template <class F>
  bool any_row(const F& f) const {
    return std::any_of(sources_.begin(), sources_.begin() + count_, f);
  }
  // Of a pass.
  template <class F>
  bool any_row(const Pass& pass, const F& f) const {
    return std::any_of(sources_.begin() + pass.first, sources_.begin() + pass.last, f);
  }
  Row* begin(const Pass& pass) { return rows_.data() + pass.first; }
  Row* end(const Pass& pass) { return rows_.data() + pass.last; }
  // Rows whose states have yet to be made.
  const std::vector<size_t>& new_states() const { return new_states_; }
  // A number that is new whenever something about rows is.
  uint64_t version() const { return version_; }
  void touch() { ++version_; }
  // Whether one of a group's options is none of torch's.
  bool has_options() const { return has_options_; }
  const Options& options_of(const Source& source) const { return options_of(slots_[source.slot].group); }
  const Options& options_of(int group) const { return groups_[group].options ? *groups_[group].options : options_; }
  // The optimizer's.
  const Options& options() const { return options_; }
  const at::Tensor& grad_of(int slot) const {
    return grads_ ? unpack(grads_[slot]) : unpack(slots_[slot].param).unsafeGetTensorImpl()->grad();
  }
  // Whether clearing one gradient could change what another param still has to read: gradients that share memory, and
  // expanded ones.
  bool grads_overlap() const;
  // The tensor that a row's param is computed from.
  TensorImpl* exact_param(const Source& source) const;
  bool has_codes(const Row& row, const Source& source) const;
  // As torch does for rules that are indexed; a graph needs counters on the device.
  bool counts_in_python(const Source& source) const {
    return rule_->indexed && (source.device == kHost || !groups_[slots_[source.slot].group].capturable);
  }
  // What other Python threads could free.
  Held hold_all() const;
  // Keeps a tensor until the step is over.
  const at::Tensor& keep(at::Tensor tensor) { return held_.emplace_back(std::move(tensor)); }

  // What a pass may have to do with a row again.

  void read_counts(Source& source) const;
  // False if its operands lie too differently.
  bool lay_out(Row& row, Source& source);
  // Says where a row's operands lie, and in `moved` whether that is elsewhere than before.
  void address(Row& row, const Source& source, Moved& moved) const;
  // What travels does so as it lies in memory: in the order of the row.
  void bring_in_order(Row& row, Source& source);
  // Describes where the operands of a factored rule's row lie, but for factors of which it needs a part. False if they
  // have too many dimensions.
  bool describe(const Row& row, const Source& source, Factored& t) const;
  // Whether a rule that adds up over tensors does so over processes for this one.
  bool in_parts(const Source& source) const;

  // What is concluded of a joint rule stays in its groups: as numbers, where the CPU steps,
  void keep_in_groups(const std::vector<std::array<double, kMaxHypers>>& concluded);
  // or on the device that steps, from the first step on.
  void keep_on_device(int device);
  // Fetches groups' numbers from devices.
  void fetch_numbers();

  std::string label(int group, int position) const;
  [[noreturn]] void fail(const Source& source, const std::string& what) const {
    const Slot& slot = slots_[source.slot];
    throw std::runtime_error(label(slot.group, slot.position) + ": " + what);
  }
  // What keeps a DTensor from being stepped as a shard; empty if nothing does, or if it is none.
  std::string why_left(const py::object& param) const;

 private:
  // What a slot turned out to be: without a gradient, a row for the engine, or torch's to step.
  enum class Found { nothing, row, leftover };
  static constexpr int kOwn = kMaxStates + kMaxCounters;

  bool slots_match(PyObject* state);
  void take_grads(const py::object& grads);
  void rebuild_slots(PyObject* state);
  void unsettle();
  void note_lines();
  bool settled(int slot, size_t at, Moved& moved);
  bool all_settled();
  void collect_each(bool observed, py::list& leftover);
  void find_waves();
  void find_passes();
  Found collect_row(int slot, size_t at);
  void enter_shards(Source& source, const at::Tensor& grad) const;
  bool shards_as_before(const Source& source, TensorImpl*& param, TensorImpl*& grad) const;
  TensorImpl* state_tensor(const Source& source, PyObject* value, const std::string& name, bool factor = false) const;
  TensorImpl* known_tensor(const Source& source, PyObject* value) const;
  Found read_state(Row& row, Source& source);
  void check_apart(Row& row, const Source& source, const void* param) const;
  Found read_counter(Source& source, int c, PyObject* value);
  const Signature* signature_of(PyObject* dict);
  Found collect_slices(Row& row, Source& source);
  bool lay_out_slices(Row& row, Source& source);
  std::vector<int64_t> state_shape(const Row& row, const Source& source, int k) const;
  static bool is_factor(const Row& row, int k, const TensorImpl& state, c10::IntArrayRef sizes);
  bool factor_as_before(const Row& row, const Source& source, int k, const TensorImpl& state) const;
  bool lay_out_factored(Row& row, Source& source) const;
  bool wants(const Row& row, const Source& source, int at) const;
  void read_attached(Row& row, Source& source, PyObject** found);
  void attach(Source& source, int at, PyObject* value, const std::string& name) const;
  bool attached_as_before(const Source& source) const;
  bool codes_in_order(const Row& row, const Source& source, PyObject* order) const;
  void reorder_codes(const Row& row, const Source& source, const std::vector<int64_t>& before) const;
  c10::Device home_of(const Source& source) const {
    return source.from == kHost ? source.param->device() : torch_device(kHost);
  }
  void send_home(Source& source) const;
  void outfit(size_t at);
  const Numbering& numbering_of(const Source& source);
  void enter_states(NewEntries& new_entries, bool device_decides);
  void make_own(size_t i, py::dict& entry, StateScales& scales, bool device_decides);
  void make_attached(size_t i, py::dict& entry, const StateScales& scales);
  bool counts_on_device(const Source& source, bool device_decides) const;
  void count_in_python(size_t i, int c, double value);
  void check_groups_agree() const;
  template <class F>
  void whole(const Source& source, F&& f) const;
  template <class F>
  void each_written(size_t i, F&& f) const;
  static bool is_double(const TensorImpl& impl) { return impl.dtype() == caffe2::TypeMeta::Make<double>(); }

  static constexpr const char* kNotHome =
      ", and offload='cpu' has states on the host; load_state_dict(state_dict()) moves them there";

  const Families& families_;
  const Rule* rule_;
  const cpu::Isa* isa_ = &cpu::chosen_isa();  // whose rule it is
  py::dict given_;                            // what options_ was read from
  bool device_counters_;
  GroupNames names_;
  Options options_;           // of groups that have none of their own
  bool has_options_ = false;  // of any group
  std::unique_ptr<Products> products_;
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
  PyObject* group_list_ = nullptr;  // borrowed, valid during a step, as is the next
  PyObject* state_of_all_ = nullptr;
  PyObject** grads_ = nullptr;  // by slot; null: each param has its own
  bool clears_grad_ = false;    // in this step

  // rows_[i], sources_[i] and extras_[i] belong together; the first count_ of them are this step's.
  std::vector<Row> rows_;
  std::vector<Source> sources_;
  std::vector<Extras> extras_;  // of the rows that have some
  size_t count_ = 0;
  std::vector<Pass> passes_;
  std::vector<size_t> new_states_;
  // Since passes_ and new_states_ were made of rows_.
  Moved moved_ = {true, true};
  uint64_t version_ = 0;
  // Of the last step's rows: whether to look at one takes no Python and cannot fail, and how many elements they have.
  bool simple_ = false;
  int64_t elements_ = 0;
  // What looking at them then reads: the lines of row i begin at lines_of_[i]. So many rows before they are asked for,
  // as they were; that an address may be nobody's any more does no harm to that.
  static constexpr int64_t kAhead = 2;
  std::vector<const char*> lines_;
  std::vector<size_t> lines_of_;
  // What it costs to look at a row, in elements.
  static constexpr int64_t kLookingAt = 320;
  std::deque<Layout> layouts_;
  std::vector<at::Tensor> held_;  // what a step makes for itself, until its end
  // By slot, of parts whose elements draw: what it was made of, and how they count.
  struct Numbered {
    Ref spec;
    std::vector<int64_t> order;
    Numbering numbering;
  };
  std::vector<Numbered> numbered_;
};

}  // namespace fusedopt
