// The CUDA engine where there was no nvcc to build it with.
#include <stdexcept>

#include "../clipping/engines.h"
#include "../lbfgs/engines.h"
#include "engine.h"
#include "transport.h"

namespace fusedopt::cuda {

struct Table::State {};

namespace {
[[noreturn]] void absent() { throw std::logic_error("fusedopt was built without CUDA"); }
}  // namespace

bool built() { return false; }
const char* built_for() {
  return "fusedopt was built where no nvcc of CUDA 12.1 or newer was found, or without it (FUSEDOPT_CUDA)";
}

const char* obstacle(int) { absent(); }

bool ready(const Place&, const Rule&) { absent(); }
void hold_for_graph(const Place&, void*, void (*)(void*)) { absent(); }
void synchronize(const Place&) { absent(); }

Table::Table() = default;
Table::~Table() = default;
Table::Table(Table&&) noexcept = default;
size_t Table::lacks(const Step&) { absent(); }
void Table::bind(void*) { absent(); }
void Table::send(const Step&, const Place&) { absent(); }
void Table::send_groups(const Step&, const Place&) { absent(); }
void Table::launch(const Step&, const Place&) { absent(); }

bool ready_for_history(const Place&) { absent(); }
void products(const history::Products&, bool, void*, double*, const Place&) { absent(); }
void direction(const history::Direction&, bool, void*, double*, const Place&) { absent(); }
void move(const history::Move&, bool, const Place&) { absent(); }
void gather(const history::Gather&, bool, const Place&) { absent(); }

bool ready_for_norm(const Place&) { absent(); }
int64_t norm_scratch(int64_t) { absent(); }
void measure(const NormEntry*, const NormEntry*, const NormOrder&, double*, const Place&) { absent(); }
void clip(const double*, const Number&, const ClipRequest&, const ClipOutput&, const Place&) { absent(); }
void scale(const NormEntry*, const NormEntry*, const Number&, const Place&) { absent(); }

bool is_captured(const Place&) { absent(); }

struct Transport::State {};
Transport::Transport() = default;
Transport::~Transport() = default;
void Transport::begin(const Place&, size_t) { absent(); }
char* Transport::buffer(int) const { absent(); }
void Transport::fetch(int, const std::vector<Freight>&) { absent(); }
void Transport::wait(int) { absent(); }
void Transport::send(int, const std::vector<Freight>&) { absent(); }
void Transport::end() { absent(); }
void Transport::stop() noexcept {}

}  // namespace fusedopt::cuda
