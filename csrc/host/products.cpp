// Steps with products of matrices in them (Muon): the rule writes matrices, torch multiplies those of one shape
// together, and a second rule applies what comes out.
//
// A row is divided for it: its gradient and states belong to the first pass, its param and what hangs on that to the
// second.
#include "plan.h"

namespace fusedopt {

// Matrices of one group, shape and memory order.
struct Plan::Batch {
  int group;
  std::vector<size_t> rows;
  at::Tensor matrices;            // before the products, and after
  std::vector<at::Tensor> parts;  // for each row, of a shard what this process has of its matrix
  double ratio = 1;
};

std::vector<Plan::Batch> Plan::batches_of(const Pass& pass) const {
  std::vector<Batch> batches;
  struct Like {
    std::vector<int64_t> sizes;
    bool by_columns;
    bool wide;  // scalars are shared, and made for one arithmetic
  };
  std::vector<Like> like;
  for (size_t i = pass.first; i < pass.last; ++i) {
    const Source& source = roster_.source(i);
    const TensorImpl& param = *roster_.exact_param(source);
    const std::vector<int64_t> sizes = unpack(roster_.slot(source).param).sizes().vec();
    if (param.numel() == 0) continue;
    const int group = roster_.slot(source).group;
    // Codes lie in the order of the param, and so must what they are made of.
    const bool by_columns = roster_.has_codes(roster_.row(i), source) && order_of(param)[0] == 1;
    const bool wide = roster_.row(i).param_dtype == Dtype::f64;
    const size_t most = std::max<int64_t>(1, roster_.products()->most_bytes / (2 * sizes[0] * sizes[1]));
    size_t at = 0;
    while (at < batches.size() &&
           !(batches[at].group == group && like[at].sizes == sizes && like[at].by_columns == by_columns &&
             like[at].wide == wide && batches[at].rows.size() < most))
      ++at;
    if (at == batches.size()) {
      batches.push_back({group, {}, {}, {}});
      like.push_back({sizes, by_columns, wide});
    }
    batches[at].rows.push_back(i);
    at::Tensor part;
    if (families_.owe_sums() && families_.has(source.slot)) {
      const auto options = at::TensorOptions(param.device()).dtype(at::kBFloat16);
      part =
          by_columns ? at::empty({param.sizes()[1], param.sizes()[0]}, options).t() : at::empty(param.sizes(), options);
    }
    batches[at].parts.push_back(part);
  }
  for (size_t b = 0; b < batches.size(); ++b) {
    const int64_t count = static_cast<int64_t>(batches[b].rows.size()), rows = like[b].sizes[0],
                  columns = like[b].sizes[1];
    const auto options = at::TensorOptions(roster_.source(batches[b].rows[0]).param->device()).dtype(at::kBFloat16);
    batches[b].matrices = like[b].by_columns ? at::empty({count, columns, rows}, options).transpose(1, 2)
                                             : at::empty({count, rows, columns}, options);
  }
  return batches;
}

void Plan::multiply(Batch& batch) {
  keep_for_replays(capturing_, batch.matrices);
  const auto made =
      roster_.products()->multiply(borrow(roster_.group_dict(batch.group)), wrap(batch.matrices)).cast<py::tuple>();
  batch.matrices = unpack(made[0].ptr());
  batch.ratio = made[1].cast<double>();
  keep_for_replays(capturing_, batch.matrices);
}

// The numbers of a second stage.
void Plan::give_batches(Work& work) const {
  work.numbers.clear();
  work.step.groups.clear();
  for (const Products::Batch& batch : work.batches) work.numbers.push_back(roster_.products()->numbers(batch));
  for (const Products::Numbers& numbers : work.numbers) work.step.groups.push_back({numbers.data(), 1});
}

// Has the whole of every matrix of which processes have parts, in its batch. All params count, also those without a
// gradient here, whose part is zeros: every process sends the same list.
void Plan::gather(std::vector<Batch>& batches) {
  families_.settle();
  std::vector<at::Tensor> part_of(roster_.slots().size());
  for (const Batch& batch : batches)
    for (size_t k = 0; k < batch.rows.size(); ++k) part_of[roster_.source(batch.rows[k]).slot] = batch.parts[k];
  py::list params, parts;
  std::vector<int> place(roster_.slots().size());
  for (size_t slot = 0; slot < roster_.slots().size(); ++slot) {
    if (!families_.has(slot)) continue;
    const at::Tensor& local = local_tensor(roster_.slots()[slot].param);
    if (!part_of[slot].defined()) part_of[slot] = at::zeros(local.sizes(), local.options().dtype(at::kBFloat16));
    place[slot] = static_cast<int>(py::len(params));
    params.append(borrow(roster_.slots()[slot].param));
    parts.append(wrap(part_of[slot]));
  }
  const Ref made = options_["gather"](params, parts, families_.giving_up());
  if (families_.giving_up()) return;
  if (made.is_none())
    throw std::runtime_error(std::string(Families::kAnotherRefuses) +
                             " to params here, whose momentum has taken this step's gradients already");
  for (Batch& batch : batches)
    for (size_t k = 0; k < batch.rows.size(); ++k) {
      const int slot = roster_.source(batch.rows[k]).slot;
      if (batch.parts[k].defined()) batch.matrices.select(0, k).copy_(unpack(Ref(made[py::int_(place[slot])]).ptr()));
    }
}

// What a process does whose step has no rows, while others wait for what it has of theirs.
void Plan::come_without_rows() {
  if (rule().factored) return run_parts({});
  if (rule().joint && !families_.giving_up()) {
    work_.prepared.clear();
    roster_.fetch_numbers();
    conclude_together({}, nullptr, work_);
    return roster_.keep_in_groups(concluded_);
  }
  if (!roster_.products()) return families_.exchange(roster_, at::Tensor());
  std::vector<Batch> none;
  gather(none);
}

// What extras ask for of a row that steps states and no param.
static Extras of_states(const Extras& all) {
  Extras own;
  std::copy(std::begin(all.scales), std::end(all.scales), own.scales);
  own.states_by_chance = all.states_by_chance;
  own.clears_grad = all.clears_grad;
  own.key = all.key;
  own.numbering = all.numbering;
  return own;
}

void Plan::run_with_products(const Pass& pass) {
  std::vector<Batch> batches = batches_of(pass);
  std::vector<Row> rows;
  std::deque<Extras> extras;
  // The rows of one of the two passes, each that of its param with other operands: change(row, source, its extras,
  // matrix, batch).
  Roster::Moved elsewhere;  // no row of the roster's
  const auto collect_rows = [&](auto&& change) {
    rows.clear();
    extras.clear();
    for (size_t b = 0; b < batches.size(); ++b) {
      for (size_t k = 0; k < batches[b].rows.size(); ++k) {
        const size_t i = batches[b].rows[k];
        const at::Tensor& part = batches[b].parts[k];
        const at::Tensor& held = roster_.keep(part.defined() ? part : batches[b].matrices.select(0, k));
        TensorImpl* matrix = held.unsafeGetTensorImpl();
        Row row = roster_.row(i);
        Source source = roster_.source(i);
        Extras* own = row.extras ? &extras.emplace_back(*row.extras) : nullptr;
        row.extras = own;
        change(row, source, own, matrix, b);
        if (!roster_.lay_out(row, source))
          roster_.fail(source, "its gradient, states and itself lie too differently; make them contiguous");
        roster_.address(row, source, elsewhere);
        rows.push_back(row);
      }
    }
    std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.slot < b.slot; });
  };

  collect_rows([](Row& row, Source& source, Extras* own, TensorImpl* matrix, size_t) {
    source.param = matrix;
    source.attached[kPartnerTensor] = source.attached[kAverageTensor] = nullptr;
    row.param_dtype = Dtype::bf16;
    if (own) *own = of_states(*own);
  });
  work_.step.rows_version = 0;
  for (cuda::Entry& entry : work_.step.entries) entry.wide = false;
  run(work_, rows.data(), rows.data() + rows.size(), pass.device);

  if (adds_up_) gather(batches);
  // Of matrices without elements nothing is left to do, which a device cannot be told.
  if (batches.empty()) return;

  Work after;
  after.wave = pass.wave;
  after.stage = 1;
  after.divides = false;  // the matrices have been
  after.step = work_.step;
  after.step.rule = roster_.products()->after;
  after.step.multiplier = 1;
  after.step.entries.clear();
  for (size_t b = 0; b < batches.size(); ++b) {
    Batch& batch = batches[b];
    multiply(batch);
    after.batches.push_back({batch.group, batch.ratio});
    cuda::Entry& entry = after.step.entries.emplace_back();
    entry = {};
    entry.group = static_cast<int>(b);
    entry.wide = roster_.row(batch.rows[0]).param_dtype == Dtype::f64;  // of all of them
    Prepared& prepared = after.prepared.emplace_back();
    prepared.scalars[0] = 1;
    std::array<double, kMaxHypers> numbers = roster_.products()->groups[batch.group].numbers();
    numbers[roster_.products()->after->hypers - 1] = batch.ratio;
    roster_.products()->after->prepare(numbers.data(), prepared.after, false, prepared.scalars + 1);
    for (size_t k = 0; k < batch.rows.size(); ++k) {
      if (!batch.parts[k].defined()) continue;
      const py::object param = borrow(roster_.slots()[roster_.source(batch.rows[k]).slot].param);
      batch.parts[k] = unpack(Ref(options_["part"](param, wrap(batch.matrices.select(0, k)))).ptr());
    }
  }
  give_batches(after);
  collect_rows([](Row& row, Source& source, Extras* own, TensorImpl* matrix, size_t b) {
    source.grad = matrix;
    storage_of(*source.grad, row.grad_dtype);
    for (int s = 0; s < kMaxStates; ++s) {
      source.state[s] = source.attached[kScaleTensor + s] = nullptr;
      row.state[s] = nullptr;
      row.state_dtype[s] = Dtype::f32;
      if (own) own->scales[s] = nullptr;
    }
    row.variant = 0;
    row.entry = static_cast<uint32_t>(b);
    if (!own) return;
    own->states_by_chance = 0;
    own->clears_grad = false;
  });
  run(after, rows.data(), rows.data() + rows.size(), pass.device);
}

}  // namespace fusedopt
