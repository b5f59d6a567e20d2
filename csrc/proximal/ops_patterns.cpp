#include "proximal/pattern.h"
#include "proximal/slices_op.h"

// Projections onto N:M patterns.

namespace regkern::proximal {
namespace {

void check_pattern(const Checks& check, int64_t n, int64_t m) {
  check.that(m >= 1 && m <= kLongestPattern, "`m` in [1, 64]", std::to_string(m));
  check.that(n >= 0 && n <= m, "`n` in [0, m]", std::to_string(n));
}

int bytes_of(const Checks& check, const Tensor& x, const char* name) {
  switch (check.floating(x, name)) {
    case Dtype::float64:
      return 8;
    case Dtype::float32:
      return 4;
    default:
      return 2;
  }
}

// Along a dimension, whose elements stand `count` apart.
Slices parse_lines(const Checks& check, const std::vector<int64_t>& slices, int64_t numel,
                   size_t at) {
  check.that(slices.size() >= at + 4 && slices[at + 3] == 1,
             "`slices` of 4 numbers along a dimension (batch, outer, count, 1)",
             std::to_string(slices.size()));
  parse_slices(check, slices, numel, at);
  return {slices[at], slices[at + 1], slices[at + 2], 1};
}

void run(int bytes, int64_t n, int64_t m, const std::vector<PatternItem>& items, Context context) {
  if (!items.empty())
    backend::n_m_pattern(PatternArgs{bytes, static_cast<int>(n), static_cast<int>(m), items.data(),
                                     static_cast<int64_t>(items.size())},
                         context);
}

Tensor n_m_select(const Tensor& values, const Tensor& scores, int64_t n, int64_t m,
                  std::vector<int64_t> slices, bool) {
  const Checks check("n_m_select");
  check_pattern(check, n, m);
  const int bytes = bytes_of(check, values, "values");
  check_same(check, scores, "scores", values);
  const Slices layout = parse_lines(check, slices, values.numel(), 0);
  const Tensor v = torch::stable::contiguous(values), s = torch::stable::contiguous(scores);
  Tensor y = new_tensor(values, sizes_of(values), values.scalar_type());
  if (values.numel() > 0)
    run(bytes, n, m, {{v.const_data_ptr(), s.const_data_ptr(), y.mutable_data_ptr(), layout}},
        OnDevice(values));
  return y;
}

Tensor n_m_mask(const Tensor& scores, int64_t n, int64_t m, std::vector<int64_t> slices) {
  const Checks check("n_m_mask");
  check_pattern(check, n, m);
  const int bytes = bytes_of(check, scores, "scores");
  const Slices layout = parse_lines(check, slices, scores.numel(), 0);
  const Tensor s = torch::stable::contiguous(scores);
  Tensor mask = new_tensor(scores, sizes_of(scores), ScalarType::Bool);
  if (scores.numel() > 0)
    run(bytes, n, m, {{nullptr, s.const_data_ptr(), mask.mutable_data_ptr(), layout}},
        OnDevice(scores));
  return mask;
}

void n_m_select_(std::vector<Tensor> xs, int64_t n, int64_t m, std::vector<int64_t> slices) {
  const Checks check("n_m_select_");
  check_pattern(check, n, m);
  check.that(slices.size() == 4 * xs.size(), "`slices` of 4 numbers per tensor",
             std::to_string(slices.size()));
  if (xs.empty()) return;
  std::vector<Tensor> kept;
  std::vector<PatternItem> items[3];
  for (size_t i = 0; i < xs.size(); ++i) {
    check.same_device(xs[i], "xs", xs[0]);
    const int bytes = bytes_of(check, xs[i], "xs");
    const Slices layout = parse_lines(check, slices, xs[i].numel(), 4 * i);
    kept.push_back(torch::stable::contiguous(xs[i]));
    void* data = kept[i].mutable_data_ptr();
    if (xs[i].numel() > 0)
      items[bytes == 2 ? 0 : bytes == 4 ? 1 : 2].push_back({data, data, data, layout});
  }
  const OnDevice context(xs[0]);
  for (int i = 0; i < 3; ++i) run(2 << i, n, m, items[i], context);
  for (size_t i = 0; i < xs.size(); ++i)
    if (!xs[i].is_contiguous()) torch::stable::copy_(xs[i], kept[i]);
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "n_m_select(Tensor values, Tensor scores, int n, int m, int[] slices, "
      "bool straight_through=False) -> Tensor");
  m.def("n_m_mask(Tensor scores, int n, int m, int[] slices) -> Tensor");
  m.def("n_m_select_(Tensor(a!)[] xs, int n, int m, int[] slices) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("n_m_select", TORCH_BOX(&n_m_select));
  m.impl("n_m_mask", TORCH_BOX(&n_m_mask));
  m.impl("n_m_select_", TORCH_BOX(&n_m_select_));
}

}  // namespace regkern::proximal
