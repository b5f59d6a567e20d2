#include "spectral/network_norms.h"

#include <cstring>
#include <type_traits>

#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace spectral;

// What the terms of a span are made of.
template <Norms kNorms, bool kAdaptive, typename T>
struct Terms {
  static constexpr int kSums = kNorms == Norms::pair ? kPairSums : 1;
  static constexpr bool kTwo = kAdaptive || kNorms == Norms::pair || kNorms == Norms::distance;
  using C = compute_t<T>;
  const T* x;
  const T* w;
  C eta;
  double p, most;

  template <typename A, int k = 0>
  A term(int64_t i) const {
    const C second = kTwo ? widen(w[i]) : C(0);
    return element_term<kNorms, kAdaptive, k, A>(widen(x[i]), second, eta, p, most);
  }
};

// lanes[k][i] += the terms of element `from` + i of kStripes stripes, one after the other. By
// value: what is captured must not be thought to change with the lanes.
template <int kStripes, typename A, typename F>
void add_stripes(const F terms, int64_t from, int count, A* lanes) {
  static_assert(kStripes == 1 || kStripes == 4);
  constexpr int64_t one = kSpanLanes, two = 2 * one, three = 3 * one;
  const auto add = [&](auto sum, A* lane) {
    constexpr int k = decltype(sum)::value;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const int64_t e = from + i;
      A value = lane[i] + terms.template term<A, k>(e);
      if constexpr (kStripes == 4) {
        value += terms.template term<A, k>(e + one);
        value += terms.template term<A, k>(e + two);
        value += terms.template term<A, k>(e + three);
      }
      lane[i] = value;
    }
  };
  add(std::integral_constant<int, 0>{}, lanes);
  if constexpr (F::kSums == kPairSums) {
    add(std::integral_constant<int, 1>{}, lanes + kSpanLanes);
    add(std::integral_constant<int, 2>{}, lanes + 2 * kSpanLanes);
  }
}

// The sums of the n elements of a span. Four stripes at a time: that spares most of the traffic of
// the lanes, which takes longer than reading the tensors.
template <typename A, typename F>
void span_sums(const F& terms, int64_t from, int64_t n, A* lanes, double* sums) {
  constexpr int kSums = F::kSums;
  memset(lanes, 0, static_cast<size_t>(kSums * kSpanLanes) * sizeof(A));
  int64_t e = 0;
  for (; e + 4 * kSpanLanes <= n; e += 4 * kSpanLanes)
    add_stripes<4>(terms, from + e, kSpanLanes, lanes);
  for (; e + kSpanLanes <= n; e += kSpanLanes) add_stripes<1>(terms, from + e, kSpanLanes, lanes);
  add_stripes<1>(terms, from + e, static_cast<int>(n - e), lanes);
  const int64_t used = n < kSpanLanes ? n : kSpanLanes;
  for (int k = 0; k < kSums; ++k) {
    const A* const lane = lanes + k * kSpanLanes;
    double groups[kSpanLanes / kLaneGroup] = {};
    for (int64_t i = 0; i < used; i += kLaneGroup)
      groups[i / kLaneGroup] = lane_group_sum(lane + i);
    sums[k] = sum_by_halves<kSpanLanes / kLaneGroup>(groups);
  }
}

template <Norms kNorms, bool kAdaptive, typename T>
void sums_as(const NetworkNormsArgs& args) {
  using F = Terms<kNorms, kAdaptive, T>;
  using A = lane_t<kNorms, compute_t<T>>;
  constexpr int kSums = F::kSums;
  parallel_for(args.all_spans, 4, [&](int64_t begin, int64_t end) {
    const Scratch<double> lanes(int64_t{kSums} * kSpanLanes);
    int64_t r = 0;
    for (int64_t span = begin; span < end; ++span) {
      while (span >= args.rows[r].span + span_count(args.rows[r].numel)) ++r;
      const NormRow& row = args.rows[r];
      const F terms{static_cast<const T*>(row.x), static_cast<const T*>(row.w),
                    static_cast<compute_t<T>>(args.eta), args.p,
                    kNorms == Norms::power ? *args.most : 0.0};
      const int64_t from = (span - row.span) * kSpan;
      const int64_t n = row.numel - from < kSpan ? row.numel - from : kSpan;
      double* const sums = args.spans + span * kSums;
      span_sums(terms, from, n, reinterpret_cast<A*>(lanes.data()), sums);
      if constexpr (sizeof(A) < sizeof(double))
        if (!square_sum_holds(static_cast<float>(sums[0])))
          span_sums(terms, from, n, lanes.data(), sums);
    }
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
