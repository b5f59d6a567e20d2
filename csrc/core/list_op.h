#pragma once

// What the torch-facing files of ops over lists of tensors share: checks of a list against another,
// and row-major memory of tensors that have other strides.

#include <string>
#include <utility>
#include <vector>

#include "core/op.h"
#include "core/optimizer_step.h"

namespace regkern {

using Tensors = std::vector<Tensor>;

inline std::string item(const char* name, size_t i) {
  return std::string("`") + name + "[" + std::to_string(i) + "]`";
}

inline bool same_place(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

// The checks of a list against another, without a text for each of the many that hold.
inline void check_like(const Checks& check, const Tensors& list, const char* name,
                       const Tensors& like, const char* like_name) {
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
  static Tensor fresh(const Tensor& t) { return new_tensor(t, sizes_of(t), t.scalar_type()); }
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

inline Dtype check_dtypes(const Checks& check, const Tensors& list, const char* name) {
  for (size_t i = 1; i < list.size(); ++i)
    if (list[i].scalar_type() != list[0].scalar_type())
      check.that(false, item(name, i) + " of the dtype of " + item(name, 0), "another");
  return check.floating(list[0], name);
}

inline LearningRate check_rate(const Checks& check, double value, const MaybeTensor& tensor,
                               const Tensor& like) {
  if (!tensor.has_value()) return {value, nullptr};
  check.same_device(*tensor, "lr_tensor", like);
  check.dtype(*tensor, "lr_tensor", ScalarType::Double, "float64");
  check.that(tensor->numel() == 1, "`lr_tensor` of one element", sizes_name(*tensor));
  return {value, const_data<double>(*tensor)};
}

}  // namespace regkern
