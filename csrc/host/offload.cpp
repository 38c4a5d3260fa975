// Params and gradients on a device, states on the host: rows that the CPU engine steps piece by piece, as their memory
// comes from the device and goes back to it.
#include "plan.h"

namespace fusedopt {
namespace {

using cuda::Freight;
using cuda::Transport;

// Elements of a row that are in a buffer together, and where each of its operands is there.
struct Piece {
  size_t row;
  int64_t begin, end;
  size_t offset[3];
};

// What travels of a row: the row's pointer to it, or its extras'.
struct Traveller {
  Operand operand;
  const void* device;
  size_t size;  // of an element
  bool fetched, sent;
};

class Travellers {
 public:
  explicit Travellers(const Row& row) {
    const Extras none, &extras = row.extras ? *row.extras : none;
    if (extras.pair == Pair::master)
      add({kPartner, extras.partner, size_of(extras.partner_dtype), true, true});
    else
      add({kParam, row.param, size_of(row.param_dtype), true, true});
    add({kGrad, row.grad, size_of(row.grad_dtype), true, false});
    if (extras.pair == Pair::copy) add({kPartner, extras.partner, size_of(extras.partner_dtype), false, true});
  }
  const Traveller* begin() const { return all_; }
  const Traveller* end() const { return all_ + count_; }
  size_t bytes() const {
    size_t bytes = 0;
    for (const Traveller& one : *this) bytes += one.size;
    return bytes;
  }

 private:
  static size_t size_of(Dtype dtype) { return element_size(dtype); }
  void add(const Traveller& one) { all_[count_++] = one; }

  Traveller all_[3];
  int count_ = 0;
};

// Pieces that are in a buffer together.
using Load = std::vector<Piece>;

constexpr size_t kAligned = 64;

// Divides rows into loads of so many bytes, or as many as kChunk elements take. `bytes` are those of the largest.
std::vector<Load> loads_of(const Row* first, const Row* last, size_t most, size_t& bytes) {
  std::vector<Load> loads;
  size_t used = bytes = 0;
  for (const Row* row = first; row < last; ++row) {
    const Travellers travellers(*row);
    for (int64_t begin = 0; begin < row->numel;) {
      const size_t room = most > used + 3 * kAligned ? most - used - 3 * kAligned : 0;
      const int64_t fits = static_cast<int64_t>(room / travellers.bytes());
      int64_t count = std::min(row->numel - begin, fits);
      // Sums and codes belong together by kChunk elements.
      if (begin + count < row->numel) count = count / kChunk * kChunk;
      if (count == 0 && used > 0) {
        used = 0;
        continue;
      }
      if (count == 0) count = std::min<int64_t>(row->numel - begin, kChunk);
      if (used == 0) loads.emplace_back();
      Piece& piece = loads.back().emplace_back(Piece{static_cast<size_t>(row - first), begin, begin + count, {}});
      size_t* offset = piece.offset;
      for (const Traveller& one : travellers) {
        *offset++ = used;
        used += (one.size * count + kAligned - 1) / kAligned * kAligned;
      }
      bytes = std::max(bytes, used);
      begin += count;
    }
  }
  return loads;
}

// What of a load goes the one way or the other.
std::vector<Freight> freights_of(const Load& load, const Row* first, bool fetched) {
  std::vector<Freight> freights;
  for (const Piece& piece : load) {
    const size_t* offset = piece.offset;
    for (const Traveller& one : Travellers(first[piece.row])) {
      char* const from = static_cast<char*>(const_cast<void*>(one.device)) + piece.begin * one.size;
      if (fetched ? one.fetched : one.sent) freights.push_back({from, *offset, (piece.end - piece.begin) * one.size});
      ++offset;
    }
  }
  return freights;
}

// The pieces of a load as the engine steps them in a buffer.
struct Here {
  std::vector<cpu::Part> parts;
  std::vector<Extras> extras;

  Here(const Load& load, const Row* first, char* buffer) {
    extras.reserve(load.size());  // rows point there
    int64_t work = 0;
    for (const Piece& piece : load) {
      cpu::Part& part = parts.emplace_back(cpu::Part{first[piece.row], piece.begin});
      if (part.extras) part.extras = &extras.emplace_back(*part.extras);
      const size_t* offset = piece.offset;
      for (const Traveller& one : Travellers(first[piece.row])) {
        const uintptr_t at = reinterpret_cast<uintptr_t>(buffer) + *offset++ - piece.begin * one.size;
        void* const operand = reinterpret_cast<void*>(at);
        if (one.operand == kParam) part.param = operand;
        if (one.operand == kGrad) part.grad = operand;
        if (one.operand == kPartner) extras.back().partner = operand;
      }
      part.numel = piece.end;
      part.work_end = work += piece.end - piece.begin + cpu::kRowOverhead;
    }
  }
};

// Has each load come, be worked on and, if it `returns`, go back. While one is worked on, the next is on its way.
template <class F>
void each_load(Transport& transport, const std::vector<Load>& loads, const Row* first, bool returns, F&& work_on) {
  const auto fetch = [&](size_t l) {
    if (l < loads.size()) transport.fetch(l % Transport::kBuffers, freights_of(loads[l], first, /*fetched=*/true));
  };
  fetch(0);
  for (size_t l = 0; l < loads.size(); ++l) {
    const int buffer = l % Transport::kBuffers;
    fetch(l + 1);
    transport.wait(buffer);
    work_on(loads[l], Here(loads[l], first, transport.buffer(buffer)));
    if (returns) transport.send(buffer, freights_of(loads[l], first, /*fetched=*/false));
  }
}

}  // namespace

void Plan::run_offloaded(const Pass& pass) {
  const OnDevice guard(pass.from);
  Row* const first = roster_.begin(pass);
  Row* const last = roster_.end(pass);
  const auto measures = [&](const Row& row) { return rule().sums > 0 && rule().measures(row.variant); };
  size_t bytes = 0;
  const size_t most = roster_.options_of(roster_.source(pass.first)).offload;
  const std::vector<Load> loads = loads_of(first, last, most, bytes);
  if (loads.empty()) return;
  // What of these is needed for sums over a tensor, which are complete before the first update.
  std::vector<Load> measured;
  for (const Load& load : loads) {
    Load its;
    std::copy_if(load.begin(), load.end(), std::back_inserter(its),
                 [&](const Piece& piece) { return measures(first[piece.row]); });
    if (!its.empty()) measured.push_back(std::move(its));
  }
  std::vector<cpu::ChunkSums> sums_of;
  std::vector<std::vector<double>> sums;
  for (Row* row = first; row < last; ++row) {
    row->scalars = work_.prepared[row->entry].scalars;
    row->counters = work_.prepared[row->entry].after;
    const int64_t chunks = measures(*row) ? (row->numel + kChunk - 1) / kChunk : 0;
    sums.emplace_back(chunks * rule().sums);
    sums_of.push_back({sums.back().data(), chunks});
  }

  Transport& transport = transports_[pass.from];
  const cuda::Place place = {pass.from, current_stream(pass.from)};
  const int threads = at::get_num_threads();
  bool wrote = false;
  without_gil(std::numeric_limits<int64_t>::max(), [&] {
    try {
      transport.begin(place, bytes);
      each_load(transport, measured, first, /*returns=*/false, [&](const Load& load, const Here& here) {
        const cpu::Part* const parts = here.parts.data();
        cpu::measure(rule(), parts, parts + load.size(), threads, [&](const cpu::Part& part) {
          return sums_of[load[&part - parts].row].sums + part.begin / kChunk * rule().sums;
        });
      });
      for (const Row* row = first; row < last; ++row)
        if (measures(*row)) cpu::conclude(rule(), *row, sums_of[row - first]);
      each_load(transport, loads, first, /*returns=*/true, [&](const Load& load, const Here& here) {
        wrote = true;
        cpu::update(rule(), here.parts.data(), here.parts.data() + load.size(), threads);
      });
      transport.end();
    } catch (const std::runtime_error& error) {
      transport.stop();
      if (!wrote) throw;
      throw std::runtime_error(cuda::kPartlyWritten + std::string(error.what()));
    }
  });
}

}  // namespace fusedopt
