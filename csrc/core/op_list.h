#pragma once

// What the torch-facing files of ops over lists of tensors share.

#include <string>
#include <utility>
#include <vector>

#include "core/op.h"

namespace regkern {

using Tensors = std::vector<Tensor>;

inline std::string item_name(const char* name, size_t i) {
  return std::string("`") + name + "[" + std::to_string(i) + "]`";
}

inline bool on_same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline bool of_same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

// Floating tensors of one dtype on one device; the dtype. A list is not empty.
inline Dtype check_list(const Checks& check, const Tensors& list, const char* name) {
  if (list.empty()) check.that(false, std::string("a tensor in `") + name + "`", "none");
  const Dtype dtype = check.floating(list[0], name);
  for (size_t i = 1; i < list.size(); ++i) {
    if (list[i].scalar_type() != list[0].scalar_type())
      check.that(false, item_name(name, i) + " of the dtype of " + item_name(name, 0), "another");
    if (!on_same_device(list[i], list[0]))
      check.that(false, item_name(name, i) + " on " + device_name(list[0]), device_name(list[i]));
  }
  return dtype;
}

// A list that is as long as another, on its device, tensor by tensor of its shape. Texts are made
// for what fails alone: a network has many tensors.
inline void check_like(const Checks& check, const Tensors& list, const char* name,
                       const Tensors& like, const char* like_name) {
  if (list.size() != like.size())
    check.that(false,
               std::string("`") + name + "` of as many tensors as `" + like_name + "`, " +
                   std::to_string(like.size()),
               std::to_string(list.size()));
  for (size_t i = 0; i < list.size(); ++i) {
    if (!on_same_device(list[i], like[0]))
      check.that(false, item_name(name, i) + " on " + device_name(like[0]), device_name(list[i]));
    if (!of_same_shape(list[i], like[i]))
      check.that(false, item_name(name, i) + " of shape " + sizes_name(like[i]),
                 sizes_name(list[i]));
  }
}

// Row-major memory for what is written; what lies elsewhere is copied there and back.
class Written {
 public:
  void* row_major(const Tensor& t, bool read) {
    if (t.is_contiguous()) return t.mutable_data_ptr();
    Tensor copy = read ? torch::stable::contiguous(t) : new_tensor(t, sizes_of(t), t.scalar_type());
    pairs_.push_back({t, copy});
    return copy.mutable_data_ptr();
  }
  void copy_back() {
    for (auto& [target, copy] : pairs_) torch::stable::copy_(target, copy);
  }

 private:
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

}  // namespace regkern
