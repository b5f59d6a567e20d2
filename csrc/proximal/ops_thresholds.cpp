#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "core/bits.h"
#include "core/op_list.h"
#include "proximal/magnitude_select.h"

// The k-th smallest magnitude, of all tensors of a list together or of each, and what becomes of
// the k smallest. `ranks` has one k for all tensors together, or one for each of them.

namespace regkern::proximal {
namespace {

using Ranks = std::vector<int64_t>;

struct SelectCall {
  Tensor magnitudes, ranks;
  Tensors masks;
};

SelectCall run_select(const Checks& check, const Tensors& tensors, const Tensors& minus,
                      const Ranks& ranks, bool each, Selected selected, double factor) {
  const Dtype dtype = check_list(check, tensors, "tensors");
  const Tensor& like = tensors[0];
  if (!minus.empty()) {
    check_like(check, minus, "minus", tensors, "tensors");
    check_list(check, minus, "minus");
    check.that(minus[0].scalar_type() == like.scalar_type(), "`minus` of the dtype of `tensors`",
               "another");
  }
  const size_t searches = each ? tensors.size() : 1;
  check.that(ranks.size() == searches, std::to_string(searches) + " numbers in `ranks`",
             std::to_string(ranks.size()));
  int64_t all = 0;
  for (size_t i = 0; i < tensors.size(); ++i) all += tensors[i].numel();
  for (size_t i = 0; i < searches; ++i) {
    const int64_t most = each ? tensors[i].numel() : all;
    if (ranks[i] < 0 || ranks[i] > most)
      check.that(false, "`ranks` from 0 to " + std::to_string(most), std::to_string(ranks[i]));
  }
  SelectCall call;
  Written written;
  Read read;
  std::vector<MagnitudeRow> rows;
  int64_t first = 0, tile = 0;
  bool begun = false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    const int64_t numel = t.numel();
    MagnitudeRow row{};
    if (selected == Selected::scaled) {
      row.out = written.row_major(t, true);
      row.x = row.out;
    } else {
      row.x = read.row_major(t);
    }
    if (selected == Selected::mask || selected == Selected::bits) {
      call.masks.push_back(selected == Selected::mask
                               ? new_tensor(t, sizes_of(t), ScalarType::Bool)
                               : torch::stable::new_zeros(t, {bit_words(numel)}, ScalarType::Int));
      row.out = call.masks.back().mutable_data_ptr();
    }
    if (!minus.empty()) row.minus = read.row_major(minus[i]);
    if (numel == 0 && !each) continue;
    row.numel = numel;
    row.first = first;
    row.tile = tile;
    row.k = ranks[each ? i : 0];
    const auto search = static_cast<int64_t>(each ? i : 0);
    row.search = each || !begun ? search : ~search;
    begun = true;
    rows.push_back(row);
    first += list_span(numel);
    tile += tile_count(numel);
  }
  const auto count = static_cast<int64_t>(searches);
  call.magnitudes = new_tensor(like, {count}, compute_type(dtype));
  call.ranks = new_tensor(like, {count, 2}, ScalarType::Long);
  if (rows.empty()) {
    call.magnitudes = torch::stable::new_zeros(like, {count}, compute_type(dtype));
    call.ranks = torch::stable::new_zeros(like, {count, 2}, ScalarType::Long);
    return call;
  }
  constexpr int64_t kWords = sizeof(Search) / sizeof(int64_t);
  Tensor search = new_tensor(like, {count, kWords}, ScalarType::Long);
  Tensor counts = new_tensor(like, {count, kBins}, ScalarType::Long);
  Tensor ties = new_tensor(like, {tile}, ScalarType::Int);
  backend::magnitude_select(
      MagnitudeSelectArgs{dtype, selected, !minus.empty(), factor, rows.data(),
                          static_cast<int64_t>(rows.size()), count, tile,
                          static_cast<Search*>(search.mutable_data_ptr()),
                          mutable_data<int64_t>(counts), mutable_data<int32_t>(ties),
                          call.magnitudes.mutable_data_ptr(), mutable_data<int64_t>(call.ranks)},
      OnDevice(like));
  written.copy_back();
  return call;
}

std::tuple<Tensor, Tensor> magnitude_select(Tensors tensors, Tensors minus, Ranks ranks,
                                            bool each) {
  SelectCall call =
      run_select(Checks("magnitude_select"), tensors, minus, ranks, each, Selected::nothing, 1.0);
  return {call.magnitudes, call.ranks};
}

std::tuple<Tensor, Tensor> magnitude_scale_(Tensors tensors, Ranks ranks, bool each,
                                            double factor) {
  SelectCall call =
      run_select(Checks("magnitude_scale_"), tensors, {}, ranks, each, Selected::scaled, factor);
  return {call.magnitudes, call.ranks};
}

std::tuple<Tensors, Tensor> magnitude_mask(Tensors tensors, Tensors minus, Ranks ranks, bool each,
                                           bool packed) {
  SelectCall call = run_select(Checks("magnitude_mask"), tensors, minus, ranks, each,
                               packed ? Selected::bits : Selected::mask, 1.0);
  return {call.masks, call.magnitudes};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "magnitude_select(Tensor[] tensors, Tensor[] minus, int[] ranks, bool each) -> (Tensor, "
      "Tensor)");
  m.def(
      "magnitude_scale_(Tensor(a!)[] tensors, int[] ranks, bool each, float factor) -> (Tensor, "
      "Tensor)");
  m.def(
      "magnitude_mask(Tensor[] tensors, Tensor[] minus, int[] ranks, bool each, bool packed) -> "
      "(Tensor[], Tensor)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("magnitude_select", TORCH_BOX(&magnitude_select));
  m.impl("magnitude_scale_", TORCH_BOX(&magnitude_scale_));
  m.impl("magnitude_mask", TORCH_BOX(&magnitude_mask));
}

}  // namespace regkern::proximal
