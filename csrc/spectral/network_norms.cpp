#include "spectral/network_norms.h"

#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

template <Norms kNorms, bool kAdaptive, typename T>
void sums_as(const NetworkNormsArgs& args) {
  using C = compute_t<T>;
  static_assert(kSumBlock == kBlock);
  constexpr int kSums = kNorms == Norms::pair ? kPairSums : 1;
  constexpr bool kTwo = kAdaptive || kNorms == Norms::pair || kNorms == Norms::distance;
  const double p = args.p, most = kNorms == Norms::power ? *args.most : 0.0;
  const C eta = static_cast<C>(args.eta);
  sum_spans<kSums, double>(
      args.rows, args.count, args.spans,
      [&](const NormRow& row, int64_t e, int64_t n, double (&v)[kSums][kSumBlock]) {
        C x[kBlock], w[kBlock];
        load_elements(static_cast<const T*>(row.x) + e, n, x);
        if constexpr (kTwo) load_elements(static_cast<const T*>(row.w) + e, n, w);
#pragma omp simd
        for (int i = 0; i < kBlock; ++i) {
          double terms[kSums];
          const double b = kTwo ? static_cast<double>(w[i]) : 0.0;
          double a = static_cast<double>(x[i]);
          if constexpr (kAdaptive) a *= static_cast<double>(fabs(w[i]) + eta);
          norm_terms<kNorms>(a, b, p, most, terms);
          for (int k = 0; k < kSums; ++k) v[k][i] = terms[k];
        }
        for (int64_t i = n; i < kBlock; ++i)
          for (int k = 0; k < kSums; ++k) v[k][i] = 0.0;
      });
  for (int64_t r = 0; r < args.count; ++r) {
    const NormRow& row = args.rows[r];
    for (int k = 0; k < kSums; ++k)
      args.each[r * kSums + k] =
          total_of_spans(args.spans + k, row.span, row.span + span_count(row.numel), kSums);
  }
  for (int k = 0; k < kSums; ++k)
    args.total[k] = total_of_spans(args.spans + k, 0, args.all_spans, kSums);
}

template <bool kAdaptive, typename T>
double largest_of(const NormRow& row, int64_t from, int64_t to, double eta) {
  using C = compute_t<T>;
  const T* const x = static_cast<const T*>(row.x);
  if constexpr (kAdaptive) {
    const T* const w = static_cast<const T*>(row.w);
    const C shift = static_cast<C>(eta);
    double most = 0.0;
    for (int64_t i = from; i < to; ++i)
      most = larger_magnitude(most, static_cast<double>(fabs(widen(w[i])) + shift) *
                                        static_cast<double>(fabs(widen(x[i]))));
    return most;
  } else {
    using Bits = decltype(magnitude_bits(C(0)));
    Bits most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = from; i < to; ++i) {
      const Bits bits = magnitude_bits(widen(x[i]));
      most = bits > most ? bits : most;
    }
    return static_cast<double>(bit_cast<C>(most));
  }
}

template <bool kAdaptive, typename T>
void largest_as(const NetworkNormsArgs& args) {
  parallel_for(args.all_spans, 4, [&](int64_t begin, int64_t end) {
    int64_t r = 0;
    for (int64_t span = begin; span < end; ++span) {
      while (span >= args.rows[r].span + span_count(args.rows[r].numel)) ++r;
      const NormRow& row = args.rows[r];
      const int64_t from = (span - row.span) * kSpan;
      const int64_t to = from + kSpan < row.numel ? from + kSpan : row.numel;
      args.spans[span] = largest_of<kAdaptive, T>(row, from, to, args.eta);
    }
  });
  double total = 0.0;
  for (int64_t r = 0; r < args.count; ++r) {
    double most = 0.0;
    for (int64_t i = 0; i < span_count(args.rows[r].numel); ++i)
      most = larger_magnitude(most, args.spans[args.rows[r].span + i]);
    args.each[r] = most;
    total = larger_magnitude(total, most);
  }
  *args.total = total;
}

template <bool kAdaptive, typename T>
void norms_as(const NetworkNormsArgs& args) {
  switch (args.norms) {
    case Norms::absolute:
      return sums_as<Norms::absolute, kAdaptive, T>(args);
    case Norms::square:
      return sums_as<Norms::square, kAdaptive, T>(args);
    case Norms::power:
      return sums_as<Norms::power, kAdaptive, T>(args);
    case Norms::largest:
      return largest_as<kAdaptive, T>(args);
    case Norms::pair:
      return sums_as<Norms::pair, false, T>(args);
    case Norms::distance:
      return sums_as<Norms::distance, false, T>(args);
  }
}

}  // namespace

void network_norms(const NetworkNormsArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) {
    args.adaptive ? norms_as<true, decltype(zero)>(args) : norms_as<false, decltype(zero)>(args);
  });
}

}  // namespace regkern::REGKERN_ISA
