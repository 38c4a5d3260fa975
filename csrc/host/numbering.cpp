// Which elements of a whole a process has: what rounds by chance draws by their numbers there, so that a run draws the
// same however it is divided.
#include "roster.h"

namespace fusedopt {
namespace {

// A number of a part's elements, written in digits of several bases: one step of this digit is so many elements further
// in the whole.
struct Digit {
  int64_t size, stride;
};

// The digits for one dimension, of which the part has these places; false if there is no such number of steps.
bool add_digits(const at::Tensor& places, int64_t stride, int64_t& first, std::vector<Digit>& digits) {
  const int64_t* at = places.const_data_ptr<int64_t>();
  const int64_t count = places.numel();
  first += at[0] * stride;
  if (count == 1) return true;
  int64_t run = 1;
  while (run < count && at[run] == at[0] + run) ++run;
  const int64_t step = run < count ? at[run] - at[0] : 0;
  for (int64_t i = 0; i < count; ++i)
    if (at[i] != at[0] + i / run * step + i % run) return false;
  // Only the outermost digit may end in the middle of a run: nothing counts how often it ends.
  const bool regular = count % run == 0 || digits.empty();
  if (run < count) digits.push_back({count / run, step * stride});
  if (run > 1) digits.push_back({run, stride});
  return regular;
}

}  // namespace

const Numbering& Roster::numbering_of(const Source& source) {
  if (numbered_.size() != slots_.size()) numbered_.resize(slots_.size());
  Numbered& known = numbered_[source.slot];
  const TensorImpl& exact = *exact_param(source);
  // In which a row counts its dimensions: matrices that have factors row by row.
  const auto ordered = [&](const TensorImpl& impl) {
    std::vector<int64_t> order(impl.dim());
    std::iota(order.begin(), order.end(), 0);
    return rule_->factored ? order : order_of(impl);
  };
  std::vector<int64_t> order = ordered(exact);
  if (known.spec.ptr() == source.spec && known.order == order) return known.numbering;

  Numbering made;
  if (!is_whole(source.spec)) {
    PyObject* param = slots_[source.slot].param;
    const TensorImpl& whole = *unpack(param).unsafeGetTensorImpl();
    const py::list places = given_["places"](borrow(param));
    const int64_t of_number = is_complex(exact) ? 2 : 1;
    const std::vector<int64_t> of_whole = ordered(whole);
    std::vector<int64_t> strides(exact.dim());
    int64_t stride = of_number;
    for (auto d = of_whole.rbegin(); d != of_whole.rend(); stride *= whole.sizes()[*d++]) strides[*d] = stride;

    std::vector<Digit> digits;
    bool regular = true;
    for (const int64_t d : order)
      regular = regular && add_digits(unpack(places[d].ptr()).contiguous(), strides[d], made.first, digits);
    if (of_number > 1) digits.push_back({of_number, 1});
    // `span` elements of the part are `reach` of the whole, as far as it is written down.
    int64_t span = 1, reach = 1;
    int cuts = 0;
    for (auto digit = digits.rbegin(); digit != digits.rend(); ++digit) {
      if (const int64_t gap = digit->stride - reach; gap != 0) {
        regular = regular && cuts < kCuts;
        if (!regular) break;
        made.run[cuts] = span;
        made.gap[cuts++] = gap;
      }
      span *= digit->size;
      reach = digit->stride * digit->size;
    }
    if (!regular)
      fail(source, "it is placed as " + placements_of(source.spec) +
                       ", and where its elements are in the whole, by which they are rounded by chance, is not to be "
                       "said in two steps; redistribute() it along fewer dimensions, or use rounding='nearest' and no "
                       "state_dtype of 16 bits");
    constexpr int64_t kHalf = int64_t{1} << 32;
    const int64_t last = made.first + exact.numel() * of_number - 1;
    made.scattered = cuts > 0 || (made.first % kCodeBlock != 0 && made.first / kHalf != last / kHalf);
  }
  known = {borrow(source.spec), std::move(order), made};
  return known.numbering;
}

}  // namespace fusedopt
