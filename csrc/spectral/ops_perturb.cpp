#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/op_list.h"
#include "spectral/network_combine.h"
#include "spectral/network_norms.h"

// Norms of whole networks, and steps along directions that are measured by them.

namespace regkern::spectral {
namespace {

// The parts of a list that are written past the cache on the CPU: kStreamingBytes of core/vec.h.
constexpr int64_t kCacheBytes = int64_t{24} << 20;

int64_t bytes_of(const Tensors& tensors, Dtype dtype) {
  int64_t numel = 0;
  for (const Tensor& t : tensors) numel += t.numel();
  return numel * (dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2);
}

const double* number_of(const Checks& check, const MaybeTensor& t, const char* name, bool wanted,
                        const Tensor& like) {
  if (!wanted) return nullptr;
  check.that(t.has_value(), std::string("`") + name + "`", "none");
  check.same_device(*t, name, like);
  check.dtype(*t, name, ScalarType::Double, "float64");
  check.that(t->numel() == 1, std::string("`") + name + "` of one element", sizes_name(*t));
  return const_data<double>(*t);
}

void check_twins(const Checks& check, const Tensors& list, const char* name, const Tensors& xs,
                 const char* like_name, Dtype dtype) {
  check_like(check, list, name, xs, like_name);
  check.that(check_list(check, list, name) == dtype,
             std::string("`") + name + "` of the dtype of `" + like_name + "`", "another");
}

// Of each tensor, and of all of them.
std::tuple<Tensor, Tensor> network_norms(Tensors xs, Tensors ws, std::string norms, bool adaptive,
                                         double eta, double p, MaybeTensor most) {
  const Checks check("network_norms");
  NetworkNormsArgs a{};
  a.dtype = check_list(check, xs, "xs");
  a.norms = static_cast<Norms>(
      check.one_of(norms, "norms", {"absolute", "square", "power", "largest", "pair", "distance"}));
  const bool two = a.norms == Norms::pair || a.norms == Norms::distance;
  check.that(!(adaptive && two), "`adaptive` norms of one list", norms);
  a.adaptive = adaptive;
  if (two || adaptive)
    check_twins(check, ws, "ws", xs, "xs", a.dtype);
  else
    check.that(ws.empty(), "no `ws` with these norms", std::to_string(ws.size()));
  a.eta = eta;
  a.p = p;
  a.most = number_of(check, most, "most", a.norms == Norms::power, xs[0]);
  Read read;
  std::vector<NormRow> rows;
  for (size_t i = 0; i < xs.size(); ++i) {
    NormRow row{};
    row.numel = xs[i].numel();
    row.span = a.all_spans;
    if (row.numel == 0) check.that(false, item_name("xs", i) + " with elements", sizes_name(xs[i]));
    row.x = read.row_major(xs[i]);
    if (!ws.empty()) row.w = read.row_major(ws[i]);
    a.all_spans += span_count(row.numel);
    rows.push_back(row);
  }
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t sums = sums_of(a.norms);
  Tensor scratch = new_tensor(xs[0], {a.all_spans, sums}, ScalarType::Double);
  Tensor each = new_tensor(xs[0], {count, sums}, ScalarType::Double);
  Tensor total = new_tensor(xs[0], {sums}, ScalarType::Double);
  a.rows = rows.data();
  a.count = count;
  a.spans = mutable_data<double>(scratch);
  a.each = mutable_data<double>(each);
  a.total = mutable_data<double>(total);
  backend::network_norms(a, OnDevice(xs[0]));
  return {each, total};
}

struct Steps {
  const Tensors& zs;
  const Tensor& numbers;
  const std::vector<int64_t>& runs;
  const std::string& direction;
  double eta, q;
  const MaybeTensor& most;
};

// One group for all tensors, or groups of runs[i] neighbours in tensor i.
void combine(const Checks& check, const Tensors& xs, const Tensors& ys, const Tensors& saved,
             const Steps& s, bool ys_are_new) {
  NetworkCombineArgs a{};
  a.dtype = check_list(check, xs, "xs");
  check_like(check, xs, "xs", xs, "xs");
  if (!ys_are_new) check_twins(check, ys, "ys", xs, "xs", a.dtype);
  if (!s.zs.empty()) check_twins(check, s.zs, "zs", xs, "xs", a.dtype);
  if (!saved.empty()) check_twins(check, saved, "saved", xs, "xs", a.dtype);
  a.direction = static_cast<Direction>(
      check.one_of(s.direction, "direction", {"plain", "adaptive", "powered"}));
  check.that(s.runs.empty() || s.runs.size() == xs.size(), "a number in `runs` for each tensor",
             std::to_string(s.runs.size()));
  a.eta = s.eta;
  a.q = s.q;
  a.most = number_of(check, s.most, "most", a.direction == Direction::powered, xs[0]);
  a.streaming = bytes_of(xs, a.dtype) > kCacheBytes;
  int64_t groups = s.runs.empty() ? 1 : 0;
  std::vector<CombineRow> rows;
  int64_t first = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    CombineRow row{};
    row.numel = xs[i].numel();
    row.first = first;
    row.run = s.runs.empty() ? INT64_MAX : s.runs[i];
    if (row.run < 1 || (!s.runs.empty() && row.numel % row.run != 0))
      check.that(false, item_name("runs", i) + " a divisor of the tensor's elements",
                 std::to_string(row.run));
    row.group = s.runs.empty() ? 0 : groups;
    if (!s.runs.empty()) groups += row.numel / row.run;
    first += list_span(row.numel);
    rows.push_back(row);
  }
  check.same_device(s.numbers, "numbers", xs[0]);
  check.dtype(s.numbers, "numbers", ScalarType::Double, "float64");
  check.shape(s.numbers, "numbers", {groups, 2});
  check.that(s.numbers.is_contiguous(), "contiguous `numbers`", "strided ones");
  a.numbers = const_data<double>(s.numbers);
  Read read;
  Written written;
  std::vector<CombineRow> filled;
  for (size_t i = 0; i < xs.size(); ++i) {
    if (rows[i].numel == 0) continue;
    const bool in_place = !ys_are_new && xs[i].const_data_ptr() == ys[i].const_data_ptr();
    rows[i].y = written.row_major(ys[i], in_place);
    rows[i].x = in_place ? rows[i].y : read.row_major(xs[i]);
    if (!s.zs.empty()) rows[i].z = read.row_major(s.zs[i]);
    if (!saved.empty()) rows[i].saved = written.row_major(saved[i], false);
    filled.push_back(rows[i]);
  }
  a.rows = filled.data();
  a.count = static_cast<int64_t>(filled.size());
  backend::network_combine(a, OnDevice(xs[0]));
  written.copy_back();
}

Tensors network_combine(Tensors xs, Tensors zs, const Tensor& numbers, std::vector<int64_t> runs,
                        std::string direction, double eta, double q, MaybeTensor most) {
  const Checks check("network_combine");
  check_list(check, xs, "xs");
  Tensors ys;
  for (const Tensor& x : xs) ys.push_back(new_tensor(x, sizes_of(x), x.scalar_type()));
  combine(check, xs, ys, {}, Steps{zs, numbers, runs, direction, eta, q, most}, true);
  for (size_t i = 0; i < ys.size(); ++i) ys[i] = laid_out(ys[i], xs[i]);
  return ys;
}

// In place where ys are xs.
void network_combine_(Tensors ys, Tensors saved, Tensors xs, Tensors zs, const Tensor& numbers,
                      std::vector<int64_t> runs, std::string direction, double eta, double q,
                      MaybeTensor most) {
  const Checks check("network_combine_");
  combine(check, xs.empty() ? ys : xs, ys, saved, Steps{zs, numbers, runs, direction, eta, q, most},
          false);
}

void network_copy_(Tensors targets, Tensors sources) {
  const Checks check("network_copy_");
  NetworkCopyArgs a{};
  a.dtype = check_list(check, targets, "targets");
  check_twins(check, sources, "sources", targets, "targets", a.dtype);
  a.streaming = bytes_of(targets, a.dtype) > kCacheBytes;
  Read read;
  Written written;
  std::vector<CopyRow> rows;
  int64_t first = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    const int64_t numel = targets[i].numel();
    if (numel == 0) continue;
    rows.push_back(
        {written.row_major(targets[i], false), read.row_major(sources[i]), numel, first});
    first += list_span(numel);
  }
  a.rows = rows.data();
  a.count = static_cast<int64_t>(rows.size());
  backend::network_copy(a, OnDevice(targets[0]));
  written.copy_back();
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "network_norms(Tensor[] xs, Tensor[] ws, str norms, bool adaptive, float eta, float p, "
      "Tensor? most) -> (Tensor, Tensor)");
  m.def(
      "network_combine(Tensor[] xs, Tensor[] zs, Tensor numbers, int[] runs, str direction, "
      "float eta, float q, Tensor? most) -> Tensor[]");
  m.def(
      "network_combine_(Tensor(a!)[] ys, Tensor(b!)[] saved, Tensor[] xs, Tensor[] zs, "
      "Tensor numbers, int[] runs, str direction, float eta, float q, Tensor? most) -> ()");
  m.def("network_copy_(Tensor(a!)[] targets, Tensor[] sources) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("network_norms", TORCH_BOX(&network_norms));
  m.impl("network_combine", TORCH_BOX(&network_combine));
  m.impl("network_combine_", TORCH_BOX(&network_combine_));
  m.impl("network_copy_", TORCH_BOX(&network_copy_));
}

}  // namespace regkern::spectral
