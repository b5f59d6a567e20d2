#include "transport/normalize_team.cuh"
#include "transport/small_slopes.h"

namespace regkern::cuda {
namespace {

using namespace transport;

// A problem of 16 threads of a warp; its plan is in shared memory where there are sums.
template <typename C>
__global__ void __launch_bounds__(kTeamThreads* kTeamsOfBlock, 8)
    transport_small_slopes_kernel(SmallSlopesArgs args) {
  RK_DYNAMIC_SHARED(unsigned char, shared);
  const int n = args.n, m = args.m, numel = n * m;
  const int team = static_cast<int>(threadIdx.x) / kTeamThreads;
  const int thread = static_cast<int>(threadIdx.x) % kTeamThreads;
  double* const apart = reinterpret_cast<double*>(shared) + team * n;
  C* const plan =
      reinterpret_cast<C*>(reinterpret_cast<double*>(shared) + kTeamsOfBlock * n) + team * numel;
  const bool sums = args.rows != nullptr;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeamsOfBlock;
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kTeamsOfBlock; base < args.batch;
       base += step) {
    const int64_t p = base + team;
    const bool live = p < args.batch;
    const double *const f = args.f + p * n, *const g = args.g + p * m;
    const C unit = live ? unit_of<C>(args.eps[p]) : C(0);
    const C scale = live && args.scale != nullptr ? static_cast<C>(args.scale[p]) : C(1);
    const auto cost = [&](int e) { return read_element<C>(args.dtype, args.cost, p * numel + e); };
    const auto weight = [&](const double* mass, const double* potential, int i, int size) {
      return weight_of<C>(mass != nullptr ? mass[p * size + i] : 1.0 / size, potential[i]);
    };
    for (int e = thread; e < numel && live; e += kTeamThreads) {
      const int i = e / m, j = e % m;
      const C y = exponent(shift_of<C>(f[i]), cost(e), shift_of<C>(g[j]), unit);
      const C mass = plan_element(y, weight(args.a, f, i, n), weight(args.b, g, j, m), C(1));
      if (sums) plan[e] = mass;
      write_element(args.dtype, mass * scale, args.slope, p * numel + e);
    }
    if (!sums) continue;
    __syncthreads();
    for (int i = thread; i < n && live; i += kTeamThreads) {
      double sum = 0.0, far = 0.0;
      for (int j = 0; j < m; ++j) {
        const C mass = plan[i * m + j];
        sum += static_cast<double>(mass);
        far += plan_exponent(mass, shift_of<C>(f[i]), cost(i * m + j), shift_of<C>(g[j]));
      }
      args.rows[p * n + i] = sum;
      apart[i] = far;
    }
    for (int j = thread; j < m && live; j += kTeamThreads) {
      double sum = 0.0;
      for (int i = 0; i < n; ++i) sum += static_cast<double>(plan[i * m + j]);
      args.columns[p * m + j] = sum;
    }
    __syncthreads();
    if (thread == 0 && live) {
      double all = 0.0;
      for (int i = 0; i < n; ++i) all += apart[i];
      args.exponents[p] = all;
    }
    __syncthreads();
  }
}

}  // namespace

void transport_small_slopes(const SmallSlopesArgs& args, Context context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const int64_t blocks = ceil_div(args.batch, int64_t{kTeamsOfBlock});
  const auto launch = [&](auto zero) {
    using C = decltype(zero);
    const int64_t numel = static_cast<int64_t>(args.n) * args.m;
    const int64_t bytes =
        kTeamsOfBlock * (args.n * int64_t{8} + numel * static_cast<int64_t>(sizeof(C)));
    RK_LAUNCH((transport_small_slopes_kernel<C>), grid_blocks(blocks, 8),
              kTeamThreads * kTeamsOfBlock, large_shared(static_cast<std::size_t>(bytes)), stream,
              args);
  };
  if (args.dtype == Dtype::float64)
    launch(0.0);
  else
    launch(0.0f);
}

}  // namespace regkern::cuda
