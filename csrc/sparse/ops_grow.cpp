#include "core/op_index.h"
#include "sparse/grow.h"

// Places where a sparse weight may grow.

namespace regkern::sparse {
namespace {

// The rows of a pattern that scores belong to: what is of other rows is not looked at.
void check_rows(const Checks& check, const Tensor& offsets, const Tensor& index, int64_t first,
                int64_t rows, int64_t columns) {
  if constexpr (!kValuesReadable) return;
  const int64_t* const at = const_data<int64_t>(offsets) + first;
  const int64_t nnz = index.numel();
  check.that(at[0] >= 0 && at[rows] <= nnz && do_not_fall(at, rows + 1),
             "`offsets` that do not fall, up to " + std::to_string(nnz), "others");
  check.that(all_below(const_data<int32_t>(index) + at[0], at[rows] - at[0], columns),
             "`index` in [0, " + std::to_string(columns) + ")", "another");
}

void sparse_grow_scan_(const Tensor& places, const Tensor& magnitudes, const Tensor& found,
                       const Tensor& scores, const Tensor& offsets, const Tensor& index,
                       int64_t first, const Tensor& threshold) {
  const Checks check("sparse_grow_scan_");
  const Dtype dtype = check.floating(scores, "scores");
  check.that(dtype == Dtype::float32 || dtype == Dtype::float64,
             "`scores` of dtype float32 or float64", "another");
  check.that(scores.dim() == 2, "`scores` of two dimensions", sizes_name(scores));
  const auto list = [&](const Tensor& t, const char* name, ScalarType type, const char* text) {
    check.same_device(t, name, scores);
    check.dtype(t, name, type, text);
    check.that(t.dim() <= 1 && t.is_contiguous(),
               std::string("a contiguous `") + name + "` of one dimension", sizes_name(t));
  };
  const char* const own = dtype == Dtype::float64 ? "float64" : "float32";
  list(places, "places", ScalarType::Long, "int64");
  list(magnitudes, "magnitudes", scores.scalar_type(), own);
  list(found, "found", ScalarType::Long, "int64");
  list(offsets, "offsets", ScalarType::Long, "int64");
  list(index, "index", ScalarType::Int, "int32");
  list(threshold, "threshold", scores.scalar_type(), own);
  check.that(found.numel() == 1, "`found` of one element", sizes_name(found));
  check.that(threshold.numel() == 1, "`threshold` of one element", sizes_name(threshold));
  check.that(magnitudes.numel() == places.numel(), "`magnitudes` as long as `places`",
             sizes_name(magnitudes));
  GrowScanArgs args{};
  args.wide = dtype == Dtype::float64;
  args.rows = scores.size(0);
  args.columns = scores.size(1);
  args.nnz = index.numel();
  args.first = first;
  check.that(first >= 0 && first + args.rows < offsets.numel(),
             "`first` and the rows of `scores` in the " + std::to_string(offsets.numel() - 1) +
                 " of the pattern",
             std::to_string(first) + " and " + std::to_string(args.rows));
  check_rows(check, offsets, index, first, args.rows, args.columns);
  args.capacity = places.numel();
  if constexpr (kValuesReadable)
    check.that(*const_data<int64_t>(found) >= 0, "`found` of at least 0",
               std::to_string(*const_data<int64_t>(found)));
  if (scores.numel() == 0) return;
  const Tensor dense = torch::stable::contiguous(scores);
  Tensor bits;
  if constexpr (!kValuesReadable) {
    bits = new_tensor(scores, {args.rows * grow_words(args.columns)}, ScalarType::Long);
    args.bits = mutable_data<uint64_t>(bits);
  }
  const Tensor ends = new_tensor(scores, {args.rows}, ScalarType::Long);
  args.offsets = const_data<int64_t>(offsets) + first;
  args.index = const_data<int32_t>(index);
  args.scores = dense.const_data_ptr();
  args.threshold = threshold.const_data_ptr();
  args.ends = mutable_data<int64_t>(ends);
  args.places = mutable_data<int64_t>(places);
  args.magnitudes = magnitudes.mutable_data_ptr();
  args.found = mutable_data<int64_t>(found);
  backend::sparse_grow_scan(args, OnDevice(scores));
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "sparse_grow_scan_(Tensor(a!) places, Tensor(b!) magnitudes, Tensor(c!) found, Tensor "
      "scores, Tensor offsets, Tensor index, int first, Tensor threshold) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("sparse_grow_scan_", TORCH_BOX(&sparse_grow_scan_));
}

}  // namespace regkern::sparse
