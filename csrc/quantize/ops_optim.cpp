#include <cstdint>
#include <string>
#include <vector>

#include "core/op.h"
#include "quantize/copy_stochastic.h"

// Ops over lists of tensors: the parameters of a network in one call.

namespace regkern::quantize {
namespace {

using Tensors = std::vector<Tensor>;

std::string item(const char* name, size_t i) {
  return std::string("`") + name + "[" + std::to_string(i) + "]`";
}

bool same_place(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

// The checks of a list against another, without a text for each of the many that hold.
void check_like(const Checks& check, const Tensors& list, const char* name, const Tensors& like,
                const char* like_name) {
  if (list.size() != like.size())
    check.that(false,
               std::string("`") + name + "` of as many tensors as `" + like_name + "`, " +
                   std::to_string(like.size()),
               std::to_string(list.size()));
  for (size_t i = 0; i < list.size(); ++i) {
    if (!same_place(list[i], like[0]))
      check.that(false, item(name, i) + " on " + device_name(like[0]), device_name(list[i]));
    if (!same_shape(list[i], like[i]))
      check.that(false, item(name, i) + " of shape " + sizes_name(like[i]), sizes_name(list[i]));
  }
}

int64_t check_first(const Checks& check, int64_t first) {
  check.that(first >= 0 && first % kListAlign == 0, "`first` to be a multiple of 128, at least 0",
             std::to_string(first));
  return first;
}

// Row-major memory for what is written; what lies elsewhere is copied there and back.
class Written {
 public:
  void* row_major(const Tensor& t, bool read) {
    if (t.is_contiguous()) return t.mutable_data_ptr();
    Tensor copy = read ? torch::stable::contiguous(t) : fresh(t);
    pairs_.push_back({t, copy});
    return copy.mutable_data_ptr();
  }
  void copy_back() {
    for (auto& [target, copy] : pairs_) torch::stable::copy_(target, copy);
  }

 private:
  static Tensor fresh(const Tensor& t) {
    std::vector<int64_t> sizes;
    for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
    return new_tensor(t, sizes, t.scalar_type());
  }
  std::vector<std::pair<Tensor, Tensor>> pairs_;
};

// Row-major memory of what is only read, kept as long as this.
class Read {
 public:
  const void* row_major(const Tensor& t) {
    if (t.is_contiguous()) return t.const_data_ptr();
    copies_.push_back(torch::stable::contiguous(t));
    return copies_.back().const_data_ptr();
  }

 private:
  Tensors copies_;
};

// ---- copy_stochastic_ ----

void copy_stochastic_(Tensors dst, Tensors src, Tensor seed, int64_t first) {
  const Checks check("copy_stochastic_");
  check_first(check, first);
  check_like(check, src, "src", dst, "dst");
  if (dst.empty()) return;
  check_like(check, dst, "dst", dst, "dst");
  check.seed(seed, dst[0]);
  for (size_t i = 0; i < dst.size(); ++i) {
    const Dtype from = check.floating(src[i], "src"), to = check.floating(dst[i], "dst");
    if (to != Dtype::bfloat16 && to != Dtype::float16 && to != from)
      check.that(false, item("dst", i) + " of dtype bfloat16, float16 or that of `src`", "another");
  }

  // Rows of one pair of dtypes, source and destination, go to the kernel together.
  constexpr int kDtypes = 4;
  std::vector<CopyRow> rows[kDtypes][kDtypes];
  Written written;
  Read read;
  for (size_t i = 0; i < dst.size(); ++i) {
    const int64_t numel = dst[i].numel();
    const Dtype from = check.floating(src[i], "src"), to = check.floating(dst[i], "dst");
    if (from == to) {
      torch::stable::copy_(dst[i], src[i]);
    } else if (numel > 0) {
      rows[static_cast<int>(from)][static_cast<int>(to)].push_back(
          {written.row_major(dst[i], false), read.row_major(src[i]), numel, first});
    }
    first += list_span(numel);
  }
  const OnDevice device(dst[0]);
  for (int from = 0; from < kDtypes; ++from)
    for (int to = 0; to < kDtypes; ++to) {
      const std::vector<CopyRow>& some = rows[from][to];
      if (some.empty()) continue;
      backend::copy_stochastic(
          CopyStochasticArgs{static_cast<Dtype>(from), static_cast<Dtype>(to), some.data(),
                             static_cast<int64_t>(some.size()), const_data<int64_t>(seed)},
          device);
    }
  written.copy_back();
}

}  // namespace

#if !defined(REGKERN_CUDA)
STABLE_TORCH_LIBRARY_FRAGMENT(REGKERN_LIBRARY, m) {
  m.def("copy_stochastic_(Tensor(a!)[] dst, Tensor[] src, Tensor seed, int first=0) -> ()");
}
#endif

STABLE_TORCH_LIBRARY_IMPL(REGKERN_LIBRARY, REGKERN_DISPATCH_KEY, m) {
  m.impl("copy_stochastic_", TORCH_BOX(&copy_stochastic_));
}

}  // namespace regkern::quantize
