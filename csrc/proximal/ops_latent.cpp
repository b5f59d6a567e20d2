#include <algorithm>

#include "core/op_index.h"
#include "proximal/latent_groups.h"
#include "proximal/op.h"

// The prox of the latent norm of groups that overlap, and its derivative.

namespace regkern::proximal {
namespace {

// The tensors behind a LatentGroups, dense.
struct Cover {
  Tensor members, offsets, places, place_offsets, weights, rest, parts;
  std::vector<int64_t> ends;
};

void check_list(const Checks& check, const Tensor& t, const char* name, int64_t count,
                const Tensor& x) {
  check.same_device(t, name, x);
  check.dtype(t, name, ScalarType::Long, "int64");
  check.shape(t, name, {count});
}

LatentGroups groups_of(const Checks& check, Dtype dtype, const Tensor& x, const Tensor& members,
                       const Tensor& offsets, int64_t longest, std::vector<int64_t> colours,
                       const Tensor& places, const Tensor& place_offsets, const Tensor& weights,
                       const Tensor& threshold, int64_t sweeps, Cover* cover) {
  check.that(x.dim() == 3, "`x` of three dimensions", sizes_name(x));
  LatentGroups a{};
  a.outer = x.size(0);
  a.n = x.size(1);
  a.inner = x.size(2);
  a.groups = weights.numel();
  a.all_members = members.numel();
  check_list(check, members, "members", a.all_members, x);
  check_list(check, offsets, "offsets", a.groups + 1, x);
  check_list(check, places, "places", a.all_members, x);
  check_list(check, place_offsets, "place_offsets", a.n + 1, x);
  check.same_device(weights, "weights", x);
  check.dtype(weights, "weights", ScalarType::Double, "float64");
  check.shape(weights, "weights", {a.groups});
  a.threshold = check_number(check, threshold, "threshold", x, dtype);
  check.that(sweeps >= 0, "`sweeps` of at least 0", std::to_string(sweeps));
  int64_t before = 0;
  for (const int64_t end : colours) {
    check.that(end >= before && end <= a.groups,
               "`colours` that do not fall and end by " + std::to_string(a.groups),
               std::to_string(end));
    before = end;
  }
  check.that(before == a.groups, "`colours` that end at " + std::to_string(a.groups),
             std::to_string(before));
  cover->members = torch::stable::contiguous(members);
  cover->offsets = torch::stable::contiguous(offsets);
  cover->places = torch::stable::contiguous(places);
  cover->place_offsets = torch::stable::contiguous(place_offsets);
  cover->weights = torch::stable::contiguous(weights);
  check_offsets(check, cover->offsets, "offsets", a.all_members);
  check_offsets(check, cover->place_offsets, "place_offsets", a.all_members);
  check_indices<int64_t>(check, cover->members, "members", a.n);
  check_indices<int64_t>(check, cover->places, "places", a.all_members);
  // Empty colours are not launched.
  cover->ends.clear();
  for (const int64_t end : colours)
    if (end > (cover->ends.empty() ? 0 : cover->ends.back())) cover->ends.push_back(end);
  a.members = const_data<int64_t>(cover->members);
  a.offsets = const_data<int64_t>(cover->offsets);
  a.places = const_data<int64_t>(cover->places);
  a.place_offsets = const_data<int64_t>(cover->place_offsets);
  a.weights = const_data<double>(cover->weights);
  a.ends = cover->ends.data();
  a.colours = static_cast<int64_t>(cover->ends.size());
  a.sweeps = sweeps;
  a.longest = longest;
  if constexpr (kValuesReadable) {
    int64_t found = 0;
    for (int64_t g = 0; g < a.groups; ++g) found = std::max(found, a.offsets[g + 1] - a.offsets[g]);
    check.that(found <= longest, "`longest` of at least " + std::to_string(found),
               std::to_string(longest));
  }
  check.that(longest >= 1, "`longest` of at least 1", std::to_string(longest));
  cover->rest = new_tensor(x, sizes_of(x), ScalarType::Double);
  cover->parts = new_tensor(x, {a.all_members, a.outer, a.inner}, ScalarType::Double);
  a.rest = mutable_data<double>(cover->rest);
  a.parts = mutable_data<double>(cover->parts);
  return a;
}

std::tuple<Tensor, Tensor> latent_group_prox(const Tensor& x, const Tensor& members,
                                             const Tensor& offsets, int64_t longest,
                                             std::vector<int64_t> colours, const Tensor& places,
                                             const Tensor& place_offsets, const Tensor& weights,
                                             const Tensor& threshold, int64_t sweeps, bool keep) {
  const Checks check("latent_group_prox");
  LatentArgs args{};
  args.dtype = check.floating(x, "x");
  Cover cover;
  args.groups = groups_of(check, args.dtype, x, members, offsets, longest, std::move(colours),
                          places, place_offsets, weights, threshold, sweeps, &cover);
  const Tensor own = torch::stable::contiguous(x);
  const Tensor y = new_tensor(x, sizes_of(x), x.scalar_type());
  const Tensor steps = new_tensor(
      x, {keep ? sweeps : 0, args.groups.all_members, args.groups.outer, args.groups.inner},
      compute_type(args.dtype));
  if (x.numel() > 0) {
    torch::stable::zero_(cover.parts);
    args.x = own.const_data_ptr();
    args.y = y.mutable_data_ptr();
    args.steps = keep ? steps.mutable_data_ptr() : nullptr;
    backend::latent_group_prox(args, OnDevice(x));
  }
  return {y, steps};
}

std::tuple<Tensor, Tensor> latent_group_prox_backward(
    const Tensor& g, const Tensor& steps, const Tensor& members, const Tensor& offsets,
    int64_t longest, std::vector<int64_t> colours, const Tensor& places,
    const Tensor& place_offsets, const Tensor& weights, const Tensor& threshold) {
  const Checks check("latent_group_prox_backward");
  LatentBackwardArgs args{};
  args.dtype = check.floating(g, "g");
  check.that(steps.dim() == 4, "`steps` of four dimensions", sizes_name(steps));
  Cover cover;
  args.groups = groups_of(check, args.dtype, g, members, offsets, longest, std::move(colours),
                          places, place_offsets, weights, threshold, steps.size(0), &cover);
  check.same_device(steps, "steps", g);
  check.dtype(steps, "steps", compute_type(args.dtype),
              args.dtype == Dtype::float64 ? "float64" : "float32");
  check.shape(steps, "steps",
              {steps.size(0), args.groups.all_members, args.groups.outer, args.groups.inner});
  const Tensor own = torch::stable::contiguous(g), kept = torch::stable::contiguous(steps);
  const Tensor dx = new_tensor(g, sizes_of(g), g.scalar_type());
  Tensor slopes = new_tensor(g, {args.groups.groups}, ScalarType::Double);
  if (g.numel() == 0) {
    torch::stable::zero_(slopes);
    return {dx, slopes};
  }
  args.g = own.const_data_ptr();
  args.steps = kept.const_data_ptr();
  args.dx = dx.mutable_data_ptr();
  args.slopes = mutable_data<double>(slopes);
  backend::latent_group_prox_backward(args, OnDevice(g));
  return {dx, slopes};
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def(
      "latent_group_prox(Tensor x, Tensor members, Tensor offsets, int longest, int[] colours, "
      "Tensor places, Tensor place_offsets, Tensor weights, Tensor threshold, int sweeps, "
      "bool keep) -> (Tensor y, Tensor steps)");
  m.def(
      "latent_group_prox_backward(Tensor g, Tensor steps, Tensor members, Tensor offsets, "
      "int longest, int[] colours, Tensor places, Tensor place_offsets, Tensor weights, "
      "Tensor threshold) -> (Tensor dx, Tensor slopes)");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("latent_group_prox", TORCH_BOX(&latent_group_prox));
  m.impl("latent_group_prox_backward", TORCH_BOX(&latent_group_prox_backward));
}

}  // namespace regkern::proximal
