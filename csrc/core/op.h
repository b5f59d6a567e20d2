#pragma once

// What the torch-facing files (`<family>/ops.cpp`) share. They are compiled once per backend: with
// REGKERN_BACKEND=cpu into libregkern, with REGKERN_BACKEND=cuda into libregkern_cuda, and with
// REGKERN_EMULATOR besides into the test-only emulator library.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/kernels/bit_transpose.h"

#if defined(REGKERN_EMULATOR)
#define REGKERN_LIBRARY regkern_emulator
#define REGKERN_DISPATCH_KEY CPU
#elif defined(REGKERN_CUDA)
#define REGKERN_LIBRARY regkern
#define REGKERN_DISPATCH_KEY CUDA
#else
#define REGKERN_LIBRARY regkern
#define REGKERN_DISPATCH_KEY CPU
#endif

namespace regkern {

#if defined(REGKERN_CUDA) || defined(REGKERN_EMULATOR)
namespace backend = cuda;
// Values on a GPU cannot be looked at without a synchronisation, so only the CPU checks them.
constexpr bool kValuesReadable = false;
#else
namespace backend = cpu;
constexpr bool kValuesReadable = true;
#endif

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// The stream that torch uses on the tensor's device, and that device made current.
class OnDevice {
 public:
  explicit OnDevice([[maybe_unused]] const Tensor& t)
#if defined(REGKERN_CUDA)
      : guard_(t.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &context_.stream));
  }
#else
  {
  }
#endif
  operator Context() const { return context_; }

 private:
#if defined(REGKERN_CUDA)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  Context context_;
};

inline std::string device_name(const Tensor& t) {
  return t.is_cpu() ? "cpu" : "cuda:" + std::to_string(t.get_device_index());
}

inline std::string sizes_name(const Tensor& t) {
  std::string text = "(";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(t.size(i));
  return text + ")";
}

// One op's checks: every message names op, argument, expectation and what it got.
class Checks {
 public:
  explicit Checks(const char* op) : op_(op) {}

  void that(bool ok, const std::string& expected, const std::string& got) const {
    // Not STD_TORCH_CHECK, which puts function, file and line of the build before the message.
    if (!ok)
      throw std::runtime_error(std::string("regkern::") + op_ + ": expected " + expected +
                               ", got " + got);
  }

  void same_device(const Tensor& t, const char* name, const Tensor& reference) const {
    that(t.is_cpu() == reference.is_cpu() && t.get_device_index() == reference.get_device_index(),
         std::string("`") + name + "` on " + device_name(reference), device_name(t));
  }

  void shape(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) const {
    bool ok = t.dim() == static_cast<int64_t>(sizes.size());
    std::string wanted;
    int64_t i = 0;
    for (int64_t size : sizes) {
      ok = ok && t.size(i) == size;
      wanted += (i++ > 0 ? ", " : "") + std::to_string(size);
    }
    that(ok, std::string("`") + name + "` of shape (" + wanted + ")", sizes_name(t));
  }

  void dtype(const Tensor& t, const char* name, ScalarType expected, const char* text) const {
    that(t.scalar_type() == expected, std::string("`") + name + "` of dtype " + text, "another");
  }

  void seed(const Tensor& t, const Tensor& reference) const {
    same_device(t, "seed", reference);
    dtype(t, "seed", ScalarType::Long, "int64");
    shape(t, "seed", {2});
    that(t.is_contiguous(), "contiguous `seed`", "a strided one");
  }

  Dtype floating(const Tensor& t, const char* name) const {
    switch (t.scalar_type()) {
      case ScalarType::Float:
        return Dtype::float32;
      case ScalarType::Double:
        return Dtype::float64;
      case ScalarType::BFloat16:
        return Dtype::bfloat16;
      case ScalarType::Half:
        return Dtype::float16;
      default:
        that(false, std::string("`") + name + "` of dtype float32, float64, bfloat16 or float16",
             "another");
        return Dtype::float32;
    }
  }

  Dtype floating_or_byte(const Tensor& t, const char* name) const {
    return t.scalar_type() == ScalarType::Byte ? Dtype::uint8 : floating(t, name);
  }

  // The place of `value` among `names`.
  int one_of(const std::string& value, const char* name,
             std::initializer_list<const char*> names) const {
    int i = 0;
    std::string all;
    for (const char* candidate : names) {
      if (value == candidate) return i;
      all += (i++ > 0 ? ", " : "") + std::string(candidate);
    }
    that(false, std::string("`") + name + "` to be one of " + all, value);
    return -1;
  }

 private:
  const char* op_;
};

// Dense memory: row-major, or channels last where the tensor is that and not row-major.
struct Dense {
  Tensor tensor;
  bool channels_last;
};

inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 && t.dim() != 5) return false;
  int64_t expected = 1;
  // Channels vary fastest, then the spatial dimensions backwards, then the batch.
  for (int64_t i = 0; i < t.dim(); ++i) {
    const int64_t d = i == 0 ? 1 : i == t.dim() - 1 ? 0 : t.dim() - i;
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline Dense dense(const Tensor& t) {
  if (t.is_contiguous()) return {t, false};
  if (is_channels_last(t)) return {t, true};
  return {torch::stable::contiguous(t), false};
}

// t in the memory layout of `like`.
inline Tensor dense_like(const Tensor& t, const Dense& like) {
  if (!like.channels_last) return torch::stable::contiguous(t);
  if (is_channels_last(t)) return t;
  using torch::headeronly::MemoryFormat;
  return torch::stable::contiguous(
      t, t.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return sizes;
}

// y, which is row-major, in the memory layout of x where that is channels last.
inline Tensor laid_out(const Tensor& y, const Tensor& x) {
  return x.is_contiguous() || !is_channels_last(x) ? y : dense_like(y, Dense{x, true});
}

// What kernels compute in.
inline ScalarType compute_type(Dtype dtype) {
  return dtype == Dtype::float64 ? ScalarType::Double : ScalarType::Float;
}

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

template <typename T>
const T* data_or_null(const MaybeTensor& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <typename T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// Packed bits of (batch, rows, cols) as those of (batch, cols, rows).
inline Tensor transposed_bits(const Tensor& bits, int64_t batch, int64_t rows, int64_t cols,
                              Context context) {
  Tensor out = new_tensor(bits, {bits.numel()}, ScalarType::Int);
  backend::bit_transpose(
      BitTransposeArgs{const_data<uint32_t>(bits), mutable_data<uint32_t>(out), batch, rows, cols},
      context);
  return out;
}

}  // namespace regkern
