#pragma once

#include "transport/normalize_team.cuh"

// 4 x 4 and 8 x 8 problems whose weights are all 1: a thread has one in its registers, and no
// thread waits for another. Sums go by index, as those of all small problems.

namespace regkern::cuda {
namespace {

using namespace transport;

// A problem of N x N elements, row by row of what is normalised first.
template <int N>
__device__ __forceinline__ void load_square(const NormalizeArgs& args, const void* data,
                                            int64_t problem, bool vectors, float (&out)[N * N]) {
  const int64_t first = problem * N * N;
  float in[N * N];
  if (vectors) {
#pragma unroll
    for (int e = 0; e < N * N; e += 4) {
      const auto v = load_vector<float, 4>(static_cast<const float*>(data) + first + e);
#pragma unroll
      for (int l = 0; l < 4; ++l) in[e + l] = v.v[l];
    }
  } else {
#pragma unroll
    for (int e = 0; e < N * N; ++e) in[e] = read_element<float>(args.dtype, data, first + e);
  }
#pragma unroll
  for (int e = 0; e < N * N; ++e) out[e] = args.columns_first ? in[e % N * N + e / N] : in[e];
}

template <int N>
__device__ __forceinline__ void store_square(const NormalizeArgs& args, const float (&in)[N * N],
                                             int64_t problem, bool vectors, void* data) {
  const int64_t first = problem * N * N;
  float out[N * N];
#pragma unroll
  for (int e = 0; e < N * N; ++e) out[e] = args.columns_first ? in[e % N * N + e / N] : in[e];
  if (vectors) {
#pragma unroll
    for (int e = 0; e < N * N; e += 4)
      store_vector(Vector<float, 4>{{out[e], out[e + 1], out[e + 2], out[e + 3]}},
                   static_cast<float*>(data) + first + e);
  } else {
#pragma unroll
    for (int e = 0; e < N * N; ++e) write_element(args.dtype, out[e], data, first + e);
  }
}

template <int N>
struct SquareOf {
  const NormalizeArgs& args;
  int64_t problem;
  bool vectors;  // x may be read four numbers at a time
  float k[N * N], u[N], v[N], seen;

  __device__ __forceinline__ bool softmax() const { return begins_with_softmax(args); }

  // Logits less the maxima of rows.
  __device__ __forceinline__ void load_shifted(float (&out)[N * N]) const {
    load_square<N>(args, args.x, problem, vectors, out);
    if (args.scale != nullptr) {
      const float scale = number_of(args.scale, args.scale_stride, problem, 1.0f);
#pragma unroll
      for (int e = 0; e < N * N; ++e) out[e] = out[e] * scale;
    }
    if (!args.logits) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float most = no_logit<float>();
#pragma unroll
      for (int j = 0; j < N; ++j) most = out[i * N + j] > most ? out[i * N + j] : most;
      most = most == no_logit<float>() ? 0.0f : most;
#pragma unroll
      for (int j = 0; j < N; ++j) out[i * N + j] = out[i * N + j] - most;
    }
  }

  // What the softmax has, without ε, of shifted logits.
  __device__ __forceinline__ static void probabilities(float (&p)[N * N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        p[i * N + j] = exp_or_zero(p[i * N + j]);
        sum = j == 0 ? p[i * N] : sum + p[i * N + j];
      }
#pragma unroll
      for (int j = 0; j < N; ++j) p[i * N + j] = p[i * N + j] / sum;
    }
  }

  __device__ __forceinline__ void load() {
    load_shifted(k);
    if (!args.logits) {
#pragma unroll
      for (int e = 0; e < N * N; ++e)
        k[e] = k[e] < 0.0f ? static_cast<float>(__builtin_nan("")) : k[e];
      return;
    }
    if (softmax()) {
      const float eps = static_cast<float>(args.eps);
      probabilities(k);
#pragma unroll
      for (int e = 0; e < N * N; ++e) k[e] = k[e] + eps;
      return;
    }
#pragma unroll
    for (int e = 0; e < N * N; ++e) k[e] = exp_or_zero(k[e]);
  }

  __device__ __forceinline__ float row_product(const float (&x)[N], int i) const {
    float sum = k[i * N] * x[0];
#pragma unroll
    for (int j = 1; j < N; ++j) sum = sum + k[i * N + j] * x[j];
    return sum;
  }
  __device__ __forceinline__ float column_product(const float (&x)[N], int j) const {
    float sum = k[j] * x[0];
#pragma unroll
    for (int i = 1; i < N; ++i) sum = sum + k[i * N + j] * x[i];
    return sum;
  }

  // Two scalings from the sums of the other side.
  __device__ __forceinline__ void scale(float first, float second, bool guard, float eps,
                                        float* of_first, float* of_second) {
    if (guard) {
      *of_first = *of_first / (*of_first * first + eps);
      *of_second = *of_second / (*of_second * second + eps);
    } else {
      invert_pair(first, second, 1.0f, of_first, of_second, &seen);
    }
  }

  // kept(t) is called with all of u and v.
  template <typename F>
  __device__ __forceinline__ void iterate(const F& kept) {
    const float eps = static_cast<float>(args.eps);
    const bool guard = args.eps > 0.0, given = softmax();
#pragma unroll
    for (int j = 0; j < N; ++j) u[j] = v[j] = 1.0f;
    seen = 0.0f;
    kept(0);
    for (int t = 1; t <= args.n_iter; ++t) {
      if (t > 1 || !given) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
          const float first = row_product(v, i), second = row_product(v, i + 1);
          scale(first, second, guard, eps, &u[i], &u[i + 1]);
        }
      }
#pragma unroll
      for (int j = 0; j < N; j += 2) {
        const float first = column_product(u, j), second = column_product(u, j + 1);
        scale(first, second, guard, eps, &v[j], &v[j + 1]);
      }
      kept(t);
    }
  }

  __device__ __forceinline__ void mark() const {
    const float infinity = -no_logit<float>();
    float most_u = 0.0f, most_v = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      most_u = larger_scaling(most_u, u[j], infinity);
      most_v = larger_scaling(most_v, v[j], infinity);
    }
    args.redo[problem] =
        args.eps == 0.0 && (left_range<float>(most_u, most_v) || pairs_left_range(seen));
  }
};

template <int N>
__global__ void __launch_bounds__(kSquareThreads, N == 4 ? 8 : 4)
    normalize_square_kernel(NormalizeArgs args, bool vectors) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSquareThreads;
  for (int64_t problem = static_cast<int64_t>(blockIdx.x) * kSquareThreads + threadIdx.x;
       problem < args.count; problem += step) {
    SquareOf<N> square{args, problem, vectors, {}, {}, {}, 0.0f};
    square.load();
    square.iterate([](int) {});
    square.mark();
    if (!args.log_output) {
#pragma unroll
      for (int e = 0; e < N * N; ++e) square.k[e] = square.u[e / N] * square.k[e] * square.v[e % N];
    } else {
      if (args.logits && args.eps == 0.0) {
        square.load_shifted(square.k);
      } else {
#pragma unroll
        for (int e = 0; e < N * N; ++e) square.k[e] = log_or_none(square.k[e]);
      }
#pragma unroll
      for (int j = 0; j < N; ++j) {
        square.u[j] = log_or_none(square.u[j]);
        square.v[j] = log_or_none(square.v[j]);
      }
#pragma unroll
      for (int e = 0; e < N * N; ++e) square.k[e] = square.u[e / N] + square.k[e] + square.v[e % N];
    }
    store_square<N>(args, square.k, problem, vectors, args.y);
  }
}

template <int N>
__global__ void __launch_bounds__(kSquareThreads, 2)
    normalize_square_backward_kernel(NormalizeBackwardArgs all, bool vectors) {
  const NormalizeArgs& args = all.forward;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSquareThreads;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kSquareThreads + threadIdx.x;
  float* const history = static_cast<float*>(args.space) + slot;
  const float eps = static_cast<float>(args.eps);
  const bool guard = args.eps > 0.0;
  for (int64_t problem = slot; problem < args.count; problem += step) {
    SquareOf<N> square{args, problem, vectors, {}, {}, {}, 0.0f};
    square.load();
    // Threads side by side have their numbers side by side.
    square.iterate([&](int t) {
      float* const to = history + static_cast<int64_t>(t) * 2 * N * step;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        to[j * step] = square.u[j];
        to[(N + j) * step] = square.v[j];
      }
    });
    square.mark();
    float slope[N * N], phi[N], gamma[N];
    load_square<N>(args, all.g, problem, vectors, slope);
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int j = 0; j < N; ++j) {
        float& here = slope[i * N + j];
        if (!args.log_output) here = here * square.u[i] * square.v[j];
        const float along = args.log_output ? here : here * square.k[i * N + j];
        phi[i] = j == 0 ? along : phi[i] + along;
        gamma[j] = i == 0 ? along : gamma[j] + along;
      }
    if (args.log_output) {
#pragma unroll
      for (int e = 0; e < N * N; ++e) slope[e] = 0.0f;
    }
    for (int t = args.n_iter; t > 0; --t) {
      const float* const from = history + static_cast<int64_t>(t) * 2 * N * step;
      const float* const before = from - 2 * N * step;
      float s[N], r[N], v_before[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        v_before[j] = before[(N + j) * step];
        s[j] = gamma[j] * from[(N + j) * step];
        gamma[j] = guard ? carried(s[j], eps, v_before[j]) : 0.0f;
      }
      const bool rows = !(t == 1 && square.softmax());
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float u = from[i * step];
        const float by_a = phi[i] - u * square.row_product(s, i);
        r[i] = (rows ? by_a : 0.0f) * u;
        phi[i] = guard ? carried(r[i], eps, before[i * step]) : 0.0f;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          float& here = slope[i * N + j];
          here = (here - u * s[j]) - r[i] * v_before[j];
        }
      }
#pragma unroll
      for (int j = 0; j < N; ++j) gamma[j] = gamma[j] - v_before[j] * square.column_product(r, j);
    }
    float given[N * N];
    if (args.log_output) {
      load_square<N>(args, all.g, problem, vectors, given);
    } else {
#pragma unroll
      for (int e = 0; e < N * N; ++e) given[e] = 0.0f;
    }
    if (args.logits && !guard) {
#pragma unroll
      for (int e = 0; e < N * N; ++e) {
        const float along = square.k[e] * slope[e];
        slope[e] = args.log_output ? given[e] + along : along;
      }
    } else if (args.log_output) {
#pragma unroll
      for (int e = 0; e < N * N; ++e)
        slope[e] = (square.k[e] == 0.0f ? 0.0f : given[e] / square.k[e]) + slope[e];
    }
    if (square.softmax()) {
      square.load_shifted(square.k);
      SquareOf<N>::probabilities(square.k);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float mean = slope[i * N] * square.k[i * N];
#pragma unroll
        for (int j = 1; j < N; ++j) mean = mean + slope[i * N + j] * square.k[i * N + j];
#pragma unroll
        for (int j = 0; j < N; ++j)
          slope[i * N + j] = square.k[i * N + j] * (slope[i * N + j] - mean);
      }
    }
    if (args.scale != nullptr) {
      const float scale = number_of(args.scale, args.scale_stride, problem, 1.0f);
#pragma unroll
      for (int e = 0; e < N * N; ++e) slope[e] = slope[e] * scale;
    }
    store_square<N>(args, slope, problem, vectors, all.dx);
  }
}

inline void launch_square(const NormalizeArgs& args, const NormalizeShape& shape,
                          cudaStream_t stream) {
  const bool vectors = args.dtype == Dtype::float32 && is_aligned(args.x) && is_aligned(args.y);
  const int64_t blocks = grid_blocks(ceil_div(args.count, int64_t{kSquareThreads}), 16);
  if (shape.n == 4)
    RK_LAUNCH((normalize_square_kernel<4>), blocks, kSquareThreads, 0, stream, args, vectors);
  else
    RK_LAUNCH((normalize_square_kernel<8>), blocks, kSquareThreads, 0, stream, args, vectors);
}
inline void launch_square_backward(const NormalizeBackwardArgs& all, const NormalizeShape& shape,
                                   cudaStream_t stream) {
  const NormalizeArgs& args = all.forward;
  const bool vectors =
      args.dtype == Dtype::float32 && is_aligned(args.x) && is_aligned(all.g) && is_aligned(all.dx);
  const int64_t blocks = square_slots(args.count) / kSquareThreads;
  if (shape.n == 4)
    RK_LAUNCH((normalize_square_backward_kernel<4>), blocks, kSquareThreads, 0, stream, all,
              vectors);
  else
    RK_LAUNCH((normalize_square_backward_kernel<8>), blocks, kSquareThreads, 0, stream, all,
              vectors);
}

}  // namespace
}  // namespace regkern::cuda
