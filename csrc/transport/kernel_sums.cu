#include "transport/kernel_sums.h"

#include "core/launch.cuh"

// A thread has a row, a block kThreads rows and a chunk of the columns, a tile at a time. Of the
// coordinates kDepth at a time are in shared memory.

namespace regkern::cuda {
namespace {

using namespace transport;

constexpr int kThreads = 128;
constexpr int kDepth = 16;
constexpr int kPitch = kThreads + 1;

template <typename C>
struct Shared {
  C x[kDepth * kPitch];
  C forces[kDepth * kPitch];
  C y[kDepth * kTileColumns];
  C w[kTileColumns];
  KernelScale<C> scales[kMostScales];
};

template <PointKernel kKernel, bool kGradient, typename C>
__device__ __forceinline__ void add_terms(const C (&r2)[kTileColumns],
                                          const KernelScale<C>* scales, int64_t count,
                                          C (&terms)[kTileColumns]) {
  for (int64_t s = 0; s < count; ++s) {
    const KernelScale<C> scale = scales[s];
#pragma unroll
    for (int c = 0; c < kTileColumns; ++c) terms[c] += kernel_term<kKernel, kGradient>(r2[c], scale);
  }
}

// Coordinates first … of the rows of the block and of the columns of a tile.
template <typename C>
__device__ __forceinline__ void load_rows(const KernelSumsArgs& args, int64_t b, int64_t row,
                                          int64_t first, Shared<C>& s) {
  const C* const x = static_cast<const C*>(args.x) + b * args.rows * args.size;
  for (int e = static_cast<int>(threadIdx.x); e < kThreads * kDepth; e += kThreads) {
    const int r = e / kDepth, k = e % kDepth;
    const bool there = row + r < args.rows && first + k < args.size;
    s.x[k * kPitch + r] = there ? x[(row + r) * args.size + first + k] : C(0);
  }
}
template <typename C>
__device__ __forceinline__ void load_columns(const KernelSumsArgs& args, int64_t b, int64_t column,
                                             int64_t first, Shared<C>& s) {
  const C* const y = static_cast<const C*>(args.y) + b * args.columns * args.size;
  for (int e = static_cast<int>(threadIdx.x); e < kTileColumns * kDepth; e += kThreads) {
    const int c = e / kDepth, k = e % kDepth;
    const bool there = s.w[c] != C(0) && first + k < args.size;
    s.y[k * kTileColumns + c] = there ? y[(column + c) * args.size + first + k] : C(0);
  }
}

template <typename C, bool kGradient>
__global__ void __launch_bounds__(kThreads, 4)
    kernel_sums_kernel(KernelSumsArgs args, int64_t length) {
  using Block = Shared<C>;
  RK_SHARED(Block, block, 1);
  Block& s = block[0];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t size = args.size;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * length;
  const int64_t end = begin + length < args.columns ? begin + length : args.columns;
  const int64_t blocks = (args.rows + kThreads - 1) / kThreads;
  const bool shallow = size <= kDepth;
  for (int i = thread; i < args.scales; i += kThreads)
    s.scales[i] = kernel_scale<C>(args.kernel, args.scale[i]);
  for (int64_t unit = blockIdx.x; unit < args.batch * blocks; unit += gridDim.x) {
    const int64_t b = unit / blocks, first_row = unit % blocks * kThreads;
    const int64_t row = first_row + thread;
    const bool inside = row < args.rows;
    const int64_t place = static_cast<int64_t>(blockIdx.y) * args.batch + b;
    C* forces = s.forces + thread;
    int64_t pitch = kPitch;
    if constexpr (kGradient) {
      if (!shallow) {
        forces = static_cast<C*>(args.space) + place * size * args.rows + row;
        pitch = args.rows;
      }
      if (inside || shallow)
        for (int64_t k = 0; k < size; ++k) forces[k * pitch] = C(0);
    }
    double chunk = 0.0;
    C span = C(0);
    __syncthreads();
    if (shallow) load_rows(args, b, first_row, 0, s);
    for (int64_t column = begin; column < end; column += kTileColumns) {
      __syncthreads();
      if (thread < kTileColumns) {
        const int64_t j = column + thread;
        s.w[thread] =
            j < end ? static_cast<const C*>(args.w)[b * args.columns + j] : C(0);
      }
      __syncthreads();
      C r2[kTileColumns] = {}, terms[kTileColumns] = {};
      for (int64_t first = 0; first < size; first += kDepth) {
        if (first > 0) __syncthreads();
        if (!shallow) load_rows(args, b, first_row, first, s);
        load_columns(args, b, column, first, s);
        __syncthreads();
        const int depth = static_cast<int>(size - first < kDepth ? size - first : kDepth);
        for (int k = 0; k < depth; ++k) {
          const C x = s.x[k * kPitch + thread];
#pragma unroll
          for (int c = 0; c < kTileColumns; ++c) {
            const C d = x - s.y[k * kTileColumns + c];
            r2[c] += d * d;
          }
        }
      }
      switch (args.kernel) {
        case PointKernel::gaussian:
          add_terms<PointKernel::gaussian, kGradient>(r2, s.scales, args.scales, terms);
          break;
        case PointKernel::laplacian:
          add_terms<PointKernel::laplacian, kGradient>(r2, s.scales, args.scales, terms);
          break;
        case PointKernel::energy:
          add_terms<PointKernel::energy, kGradient>(r2, s.scales, args.scales, terms);
          break;
        case PointKernel::imq:
          add_terms<PointKernel::imq, kGradient>(r2, s.scales, args.scales, terms);
          break;
        case PointKernel::rational:
          add_terms<PointKernel::rational, kGradient>(r2, s.scales, args.scales, terms);
          break;
      }
#pragma unroll
      for (int c = 0; c < kTileColumns; ++c)
        if (args.skip_diagonal && column + c == row) terms[c] = C(0);
      if constexpr (kGradient) {
#pragma unroll
        for (int c = 0; c < kTileColumns; ++c)
          terms[c] = s.w[c] == C(0) ? C(0) : s.w[c] * terms[c];
        for (int64_t first = 0; first < size; first += kDepth) {
          if (!shallow) {
            __syncthreads();
            load_rows(args, b, first_row, first, s);
            load_columns(args, b, column, first, s);
            __syncthreads();
          }
          const int depth = static_cast<int>(size - first < kDepth ? size - first : kDepth);
          for (int k = 0; k < depth; ++k) {
            const C x = s.x[k * kPitch + thread];
            C sum = C(0);
#pragma unroll
            for (int c = 0; c < kTileColumns; ++c)
              sum += terms[c] * (x - s.y[k * kTileColumns + c]);
            if (inside) forces[(first + k) * pitch] += sum;
          }
        }
      } else {
#pragma unroll
        for (int c = 0; c < kTileColumns; ++c)
          if (s.w[c] != C(0)) span += s.w[c] * terms[c];
        if ((column - begin) % kSpanColumns == kSpanColumns - kTileColumns ||
            column + kTileColumns >= end) {
          chunk += static_cast<double>(span);
          span = C(0);
        }
      }
    }
    if (inside) {
      if constexpr (kGradient) {
        C* const out = static_cast<C*>(args.space) + place * size * args.rows + row;
        if (shallow)
          for (int64_t k = 0; k < size; ++k) out[k * args.rows] = forces[k * pitch];
      } else {
        static_cast<double*>(args.space)[place * args.rows + row] = chunk;
      }
    }
  }
}

// Adds the chunks up, in order.
template <typename C, bool kGradient>
__global__ void __launch_bounds__(256, 4) kernel_chunks_kernel(KernelSumsArgs args, int64_t chunks) {
  const int64_t size = kGradient ? args.size : 1, all = args.batch * args.rows * size;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all;
       i += step) {
    using A = std::conditional_t<kGradient, C, double>;
    // Rows are neighbours in the sums, coordinates in the result.
    const int64_t b = i / (args.rows * size), k = i / args.rows % size, r = i % args.rows;
    A sum = A(0);
    for (int64_t c = 0; c < chunks; ++c)
      sum += static_cast<const A*>(args.space)[((c * args.batch + b) * size + k) * args.rows + r];
    static_cast<C*>(args.out)[(b * args.rows + r) * size + k] = static_cast<C>(sum);
  }
}

template <typename C, bool kGradient>
void launch_as(const KernelSumsArgs& args, cudaStream_t stream) {
  const int64_t chunks = chunk_count(args.columns);
  const int64_t units = args.batch * ceil_div(args.rows, int64_t{kThreads});
  const auto most = [](int64_t n, int64_t limit) { return n < limit ? n : limit; };
  if (chunks > 0) {
    const dim3 grid(static_cast<unsigned>(most(units, int64_t{1} << 20)),
                    static_cast<unsigned>(chunks));
    RK_LAUNCH((kernel_sums_kernel<C, kGradient>), grid, kThreads, 0, stream, args,
              chunk_columns(args.columns));
  }
  const int64_t all = args.batch * args.rows * (kGradient ? args.size : 1);
  if (all > 0)
    RK_LAUNCH((kernel_chunks_kernel<C, kGradient>), most(ceil_div(all, int64_t{256}), 4096), 256, 0,
              stream, args, chunks);
}

template <typename C>
void launch_as(const KernelSumsArgs& args, cudaStream_t stream) {
  if (args.gradient) return launch_as<C, true>(args, stream);
  launch_as<C, false>(args, stream);
}

}  // namespace

void kernel_sums(const KernelSumsArgs& args, Context context) {
  if (args.batch * args.rows == 0) return;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (args.dtype == Dtype::float64) return launch_as<double>(args, stream);
  launch_as<float>(args, stream);
}

}  // namespace regkern::cuda
