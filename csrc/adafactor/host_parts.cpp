// Steps of a factored rule on tensors of which processes have parts. Sums of rows and columns are added up over
// processes, and with them the states are made, of which every process has the whole; then the squares of param and
// update. However many params there are, they go together.
#include "../host/plan.h"

namespace fusedopt {

bool describe_matrices(Factored& t, c10::IntArrayRef sizes, const TensorImpl* const (&operands)[kFactoredOperands]);

void Families::find_wholes(const Roster& roster) {
  const std::vector<Roster::Slot>& slots = roster.slots();
  wholes_.clear();
  whole_of_.assign(slots.size(), -1);
  sums_ = 0;
  for (size_t f = 0; f < families_.size(); ++f)
    for (const int slot : families_[f].slots) {
      const c10::IntArrayRef sizes = unpack(slots[slot].param).sizes();
      Whole whole = {slot, static_cast<int>(f), sums_++};
      if (sizes.size() >= 2) {
        const py::list places = given_["places"](borrow(slots[slot].param));
        whole.at.matrices = {0};
        for (size_t d = 0; d < sizes.size(); ++d) {
          const at::Tensor its = unpack(places[d].ptr()).contiguous();
          const int64_t* of_dim = its.const_data_ptr<int64_t>();
          const std::vector<int64_t> at(of_dim, of_dim + its.numel());
          if (d + 2 == sizes.size()) whole.at.rows = at;
          if (d + 1 == sizes.size()) whole.at.cols = at;
          if (d + 2 >= sizes.size()) continue;
          whole.matrices *= sizes[d];
          std::vector<int64_t> matrices;
          for (const int64_t matrix : whole.at.matrices)
            for (const int64_t place : at) matrices.push_back(matrix * sizes[d] + place);
          whole.at.matrices = std::move(matrices);
        }
        whole.rows = sizes[sizes.size() - 2];
        whole.cols = sizes[sizes.size() - 1];
        sums_ += whole.matrices * (whole.rows + whole.cols);
      }
      whole_of_[slot] = static_cast<int>(wholes_.size());
      wholes_.push_back(std::move(whole));
    }
  std::vector<int64_t> starts;
  for (const Whole& whole : wholes_) starts.push_back(whole.start);
  starts_ = at::tensor(starts, at::kLong);
}

const int64_t* Families::Whole::at_on(c10::Device device) const {
  if (!at_there.defined() || at_there.device() != device) {
    std::vector<int64_t> all;
    for (const auto* places : {&at.matrices, &at.rows, &at.cols}) all.insert(all.end(), places->begin(), places->end());
    at_there = at::tensor(all, at::kLong).to(device);
  }
  return at_there.const_data_ptr<int64_t>();
}

at::Tensor Families::sums_of_all(const Roster& roster, const at::Tensor& sums) {
  py::list which;
  size_t w = 0;
  for (size_t f = 0; f < families_.size(); ++f) {
    const int64_t start = wholes_[w].start;
    while (w < wholes_.size() && wholes_[w].family == static_cast<int>(f)) ++w;
    which.append(py::slice(start, w < wholes_.size() ? wholes_[w].start : sums_, 1));
  }
  const at::Tensor made = over_processes(sums, which);
  if (!made.defined()) return made;
  const at::Tensor told = made.index_select(0, starts_.to(made.device())).cpu();
  for (size_t i = 0; i < wholes_.size(); ++i) {
    const Whole& whole = wholes_[i];
    const auto with = static_cast<int64_t>(told.const_data_ptr<double>()[i]), all = families_[whole.family].processes;
    if (with != 0 && with != all)
      throw std::runtime_error(roster.label(roster.slots()[whole.slot].group, roster.slots()[whole.slot].position) +
                               ": " + std::to_string(with) + " of the " + std::to_string(all) +
                               " processes that have a part of it have a gradient, and its rule adds up over all of "
                               "them; set it to zeros where there is none. Nothing has been written");
  }
  return made;
}

std::vector<FactoredPart> Plan::parts_of(const std::vector<size_t>& rows) const {
  std::vector<FactoredPart> parts;
  for (const size_t i : rows) {
    FactoredPart part = {};
    static_cast<Factored&>(part) = factored_row(i);
    part.whole = unpack(roster_.slot(i).param).numel();
    parts.push_back(part);
  }
  return parts;
}

void Plan::run_parts(const std::vector<size_t>& rows) {
  const at::Tensor sums = at::zeros({families_.sums_of_wholes() + 1}, at::kDouble);
  const at::Tensor totals = at::zeros({static_cast<int64_t>(roster_.slots().size()), 2}, at::kDouble);
  // Whoever has part in the first collective has part in the second, so that nobody waits in it.
  if (families_.giving_up()) {
    families_.sums_of_all(roster_, sums);
    families_.exchange(roster_, totals);
    return;
  }
  std::vector<FactoredPart> parts = parts_of(rows);
  FactoredPart *const first = parts.data(), *const last = first + parts.size();
  const auto whole_of = [&](size_t k) -> const Families::Whole& {
    return families_.whole_of(roster_.source(rows[k]).slot);
  };
  int64_t work = 0, room = 0, matrices = 0;
  for (const FactoredPart& part : parts) {
    work += part.numel;
    if (part.vector) continue;
    room += part.matrices * (part.rows + part.cols);
    matrices += part.matrices;
  }
  // Sums of rows and columns, and then the factors' copies, in no wider types.
  std::vector<double> own(room), means, own_means(matrices);
  const auto each_matrix = [&](auto&& f) {
    double *numbers = own.data(), *its_means = own_means.data();
    for (size_t k = 0; k < parts.size(); ++k) {
      FactoredPart& part = parts[k];
      if (part.vector) continue;
      f(k, part, numbers, its_means);
      numbers += part.matrices * (part.rows + part.cols);
      its_means += part.matrices;
    }
  };
  each_matrix([](size_t, FactoredPart& part, double* numbers, double*) {
    part.sums_of_rows = numbers;
    part.sums_of_cols = numbers + part.matrices * part.rows;
  });

  Before before;
  for (const size_t i : rows) keep_states(i, before);

  const int threads = at::get_num_threads();
  // Other processes may take their time: nobody's memory is freed in it.
  without_gil(std::max(work, kReleaseGil), [&] {
    cpu::measure_parts(first, last, threads);
    double* numbers = sums.mutable_data_ptr<double>();
    for (size_t k = 0; k < parts.size(); ++k) numbers[whole_of(k).start] = 1;
    each_matrix([&](size_t k, const FactoredPart& part, const double*, const double*) {
      const Families::Whole& whole = whole_of(k);
      double* to = numbers + whole.start + 1;
      const double* from = part.sums_of_rows;
      for (const int64_t matrix : whole.at.matrices)
        for (const int64_t row : whole.at.rows) to[matrix * whole.rows + row] = *from++;
      to += whole.matrices * whole.rows;
      for (const int64_t matrix : whole.at.matrices)
        for (const int64_t col : whole.at.cols) to[matrix * whole.cols + col] = *from++;
    });
    double* squares = totals.mutable_data_ptr<double>();
    try {
      at::Tensor made;
      {
        const py::gil_scoped_acquire acquire;
        made = families_.sums_of_all(roster_, sums);
      }
      numbers = made.mutable_data_ptr<double>();
      each_matrix([&](size_t k, FactoredPart& part, double* memory, double* its_means) {
        if (part.whole == 0) return;
        const Families::Whole& its = whole_of(k);
        FactoredPart whole = part;
        describe_whole(rows[k], whole);
        whole.sums_of_rows = numbers + its.start + 1;
        whole.sums_of_cols = whole.sums_of_rows + its.matrices * its.rows;
        means.resize(std::max(means.size(), static_cast<size_t>(its.matrices)));
        cpu::take_sums(whole, means.data());
        cpu::copy_factors(whole, part, its.at, reinterpret_cast<char*>(memory));
        part.means = its_means;
        for (const int64_t matrix : its.at.matrices) *its_means++ = means[matrix];
      });

      cpu::square_parts(first, last, threads);
      for (size_t k = 0; k < parts.size(); ++k)
        std::copy_n(parts[k].squares, 2, squares + 2 * roster_.source(rows[k]).slot);
    } catch (...) {
      before.put_back();
      const py::gil_scoped_acquire acquire;
      families_.say_refused([&] { families_.exchange(roster_, totals); });
      throw;
    }
    try {
      const py::gil_scoped_acquire acquire;
      families_.exchange(roster_, totals);
    } catch (...) {
      before.put_back();
      throw;
    }
    for (size_t k = 0; k < parts.size(); ++k)
      std::copy_n(squares + 2 * roster_.source(rows[k]).slot, 2, parts[k].squares);
    cpu::update_parts(first, last, threads);
  });
}

// Has a row's description be that of the whole tensor, with the states that every process has of it.
void Plan::describe_whole(size_t i, Factored& whole) const {
  const Source& source = roster_.source(i);
  const at::Tensor& param = unpack(roster_.slot(source).param);
  const TensorImpl* states[kFactoredOperands] = {};
  for (int s = 0; s < 2; ++s) {
    const int role = s == 0 ? kRowVar : kColVar;
    states[role] = source.state[s];
    whole.operand[role].data = first_of(*source.state[s]);
    whole.operand[role].dtype = roster_.row(i).state_dtype[s];
  }
  describe_matrices(whole, param.sizes(), states);
}

// The states before this step, which come back if a process fails before all have what they need of each other.
void Plan::keep_states(size_t i, Before& before) const {
  for (const TensorImpl* state : roster_.source(i).state)
    if (state && !roster_.source(i).first) before.keep(state);
}

// On a device all rows of a pass go together, and what is added up over processes lies where its kernels do.
void Plan::run_parts_on_device(const Pass& pass, std::vector<Factored>& tensors) {
  const OnDevice guard(pass.device);
  const c10::Device there = torch_device(pass.device);
  const auto numbers = at::TensorOptions(at::kDouble).device(there);
  const at::Tensor sums = at::zeros({families_.sums_of_wholes() + 1}, numbers);
  const at::Tensor totals = at::zeros({static_cast<int64_t>(roster_.slots().size()), 2}, numbers);
  std::vector<size_t> parts;
  std::vector<int64_t> starts;
  int64_t room = 0;
  for (size_t i = pass.first; i < pass.last; ++i) {
    const Source& source = roster_.source(i);
    if (!roster_.in_parts(source)) continue;
    const Families::Whole& its = families_.whole_of(source.slot);
    parts.push_back(i);
    starts.push_back(its.start);
    room += its.matrices * (1 + its.cols);
  }
  sums.index_fill_(0, at::tensor(starts, at::kLong).to(there), 1);
  const at::Tensor factors = at::empty({room}, numbers);

  std::vector<FactoredWhole> wholes;
  double* memory = factors.mutable_data_ptr<double>();
  for (const size_t i : parts) {
    const Source& source = roster_.source(i);
    const Families::Whole& its = families_.whole_of(source.slot);
    Factored& part = tensors[i - pass.first];
    FactoredWhole& whole = wholes.emplace_back();
    whole.tensor = part;
    whole.tensor.numel = unpack(roster_.slot(source).param).numel();
    whole.squares = totals.mutable_data_ptr<double>() + 2 * source.slot;
    if (part.vector) continue;
    describe_whole(i, whole.tensor);
    whole.matrix_at = its.at_on(there);
    whole.row_at = whole.matrix_at + its.at.matrices.size();
    whole.col_at = whole.row_at + its.at.rows.size();
    whole.rows = sums.mutable_data_ptr<double>() + its.start + 1;
    whole.cols = whole.rows + its.matrices * its.rows;
    whole.means = memory;
    whole.factors = memory + its.matrices;
    memory += its.matrices * (1 + its.cols);
    part.whole_matrices = whole.tensor.numel > 0 ? its.matrices : 0;
    part.whole_cols = its.cols;
  }
  const auto bytes = static_cast<int64_t>(wholes.size() * sizeof(FactoredWhole));
  const at::Tensor described = at::from_blob(wholes.data(), {bytes}, at::kByte).clone().to(there);
  for (size_t k = 0; k < parts.size(); ++k)
    tensors[parts[k] - pass.first].whole = static_cast<const FactoredWhole*>(described.const_data_ptr()) + k;

  Before before;
  for (size_t i = pass.first; i < pass.last; ++i) {
    keep_states(i, before);
    keep_counters(i, before);
  }
  int begun = 0;  // of the two
  const cuda::Exchange exchange = {nullptr, nullptr,
                                   [&] {
                                     const py::gil_scoped_acquire acquire;
                                     begun = 1;
                                     sums.narrow(0, 0, sums.size(0) - 1).copy_(families_.sums_of_all(roster_, sums));
                                   },
                                   [&] {
                                     const py::gil_scoped_acquire acquire;
                                     begun = 2;
                                     families_.exchange(roster_, totals);
                                     begun = 3;
                                   }};
  work_.step.rows_version = 0;  // what hangs on them is made anew
  work_.step.first = roster_.begin(pass);
  work_.step.last = roster_.end(pass);
  const Exchanging exchanging(work_.step, exchange);
  try {
    put(work_, pass.device);
  } catch (...) {
    if (begun < 3) before.put_back();
    if (begun == 1) families_.say_refused([&] { families_.exchange(roster_, totals); });
    throw;
  }
}

}  // namespace fusedopt
