#include "proximal/network_sums.h"

#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace proximal;

template <NetworkForm kForm, int k, typename C>
inline void terms_of(const C x[kBlock], C c, C out[kBlock]) {
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) out[i] = network_term<kForm, k>(x[i], c);
}

template <NetworkForm kForm, typename T>
void sums_as(const NetworkSumsArgs& args) {
  using C = compute_t<T>;
  const C c = static_cast<C>(*args.centre);
  static_assert(kSumBlock == kBlock);
  sum_spans<kNetworkSums, C>(
      args.rows, args.count, args.spans,
      [&](const NetworkRow& row, int64_t e, int64_t n, C(&v)[kNetworkSums][kSumBlock]) {
        C x[kBlock];
        load_elements(static_cast<const T*>(row.x) + e, n, x);
        // A loop a sum: of one loop for all gcc makes no vectors.
        terms_of<kForm, 0>(x, c, v[0]);
        terms_of<kForm, 1>(x, c, v[1]);
        terms_of<kForm, 2>(x, c, v[2]);
        for (int64_t i = n; i < kBlock; ++i)
          for (int k = 0; k < kNetworkSums; ++k) v[k][i] = C(0);
      });
  for (int k = 0; k < kNetworkSums; ++k)
    args.out[k] = total_of_spans(args.spans + k, 0, args.all_spans, kNetworkSums);
}

template <NetworkForm kForm, typename T>
void gradients_as(const NetworkGradientArgs& args) {
  using C = compute_t<T>;
  const C c = static_cast<C>(args.numbers[0]), a = static_cast<C>(args.numbers[1]);
  const C b = static_cast<C>(args.numbers[2]), d = static_cast<C>(args.numbers[3]);
  parallel_for_list(args.rows, args.count, int64_t{1} << 15,
                    [&](const NetworkRow& row, int64_t begin, int64_t end) {
                      C x[kBlock];
                      for (int64_t e = begin; e < end; e += kBlock) {
                        const int64_t n = end - e < kBlock ? end - e : kBlock;
                        load_elements(static_cast<const T*>(row.x) + e, n, x);
#pragma omp simd
                        for (int i = 0; i < kBlock; ++i)
                          x[i] = network_gradient<kForm>(x[i], c, a, b, d);
                        store_elements(x, n, static_cast<T*>(row.dx) + e);
                      }
                    });
}

}  // namespace

void network_sums(const NetworkSumsArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.form == NetworkForm::centred ? sums_as<NetworkForm::centred, T>(args)
                                      : sums_as<NetworkForm::saturated, T>(args);
  });
}

void network_gradients(const NetworkGradientArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.form == NetworkForm::centred ? gradients_as<NetworkForm::centred, T>(args)
                                      : gradients_as<NetworkForm::saturated, T>(args);
  });
}

}  // namespace regkern::REGKERN_ISA
