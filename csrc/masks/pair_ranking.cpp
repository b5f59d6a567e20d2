#include "masks/pair_ranking.h"

#include "core/list_sums.h"
#include "core/parallel.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace masks;

constexpr int kWide = kPairLanes;
constexpr int64_t kPairsPerPiece = 8192;

// A sample, in whole stripes of lanes.
template <typename C>
struct Tokens {
  const C *p, *t, *v;
  const uint32_t* there;
  int64_t padded;
};

template <typename C>
double folded(const C lanes[kWide]) {
  double wide[kWide];
  for (int l = 0; l < kWide; ++l) wide[l] = static_cast<double>(lanes[l]);
  return sum_by_halves<kWide>(wide);
}

// z, e^−|z| and whether the pair counts, of one row and one stripe.
template <typename C>
inline uint32_t gaps(const Tokens<C>& x, int64_t i, int64_t j, C z[kWide], C e[kWide],
                     uint32_t counts[kWide]) {
  const C p = x.p[i], t = x.t[i];
  const C *const ps = x.p + j, *const ts = x.t + j;
  const uint32_t* const there = x.there + j;
  uint32_t pairs = 0;
#pragma omp simd
  for (int l = 0; l < kWide; ++l) z[l] = pair_gap(p, ps[l], t, ts[l]);
#pragma omp simd
  for (int l = 0; l < kWide; ++l) e[l] = regkern::exp(-regkern::fabs(z[l]));
#pragma omp simd reduction(+ : pairs)
  for (int l = 0; l < kWide; ++l) {
    counts[l] = there[l] & static_cast<uint32_t>(!(t == ts[l]));
    pairs += counts[l];
  }
  return pairs;
}

template <typename C>
struct Row {
  double loss, slope;
  int64_t pairs;
};

template <typename C>
Row<C> rank_row(const Tokens<C>& x, int64_t i) {
  C z[kWide], e[kWide], losses[kWide] = {}, slopes[kWide] = {};
  uint32_t counts[kWide];
  Row<C> row{};
  const C t = x.t[i];
  for (int64_t j = 0; j < x.padded; j += kWide) {
    row.pairs += gaps(x, i, j, z, e, counts);
    const C* const ts = x.t + j;
#pragma omp simd
    for (int l = 0; l < kWide; ++l)
      losses[l] += choose(counts[l] != 0, pair_loss(z[l], e[l]), C(0));
#pragma omp simd
    for (int l = 0; l < kWide; ++l) {
      const C s = pair_sigmoid(z[l], e[l]);
      slopes[l] += choose(counts[l] != 0, choose(t > ts[l], -s, s), C(0));
    }
  }
  row.loss = folded(losses);
  row.slope = folded(slopes);
  return row;
}

template <typename C>
double curve_row(const Tokens<C>& x, int64_t i) {
  C z[kWide], e[kWide], sums[kWide] = {};
  uint32_t counts[kWide];
  const C v = x.v[i];
  for (int64_t j = 0; j < x.padded; j += kWide) {
    gaps(x, i, j, z, e, counts);
    const C* const vs = x.v + j;
#pragma omp simd
    for (int l = 0; l < kWide; ++l)
      sums[l] += choose(counts[l] != 0, pair_curve(e[l]) * (v - vs[l]), C(0));
  }
  return folded(sums);
}

template <typename C>
void ranking_as(const PairRankingArgs& args) {
  const int64_t n = args.n, padded = (n + kWide - 1) / kWide * kWide;
  const int64_t grain = n > 0 ? kPairsPerPiece / (n * n) : kPairsPerPiece;
  parallel_for(args.batch, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
    const Scratch<C> numbers(3 * padded);
    const Scratch<uint32_t> there(padded);
    C *const p = numbers.data(), *const t = p + padded, *const v = t + padded;
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t i = 0; i < padded; ++i) {
        const int64_t at = b * n + i;
        const bool in = i < n;
        p[i] = in ? static_cast<const C*>(args.predicted)[at] : C(0);
        t[i] = in ? static_cast<const C*>(args.target)[at] : C(0);
        v[i] = in && args.direction != nullptr ? static_cast<const C*>(args.direction)[at] : C(0);
        there[i] = in && (args.mask == nullptr || args.mask[at] != 0) ? 1u : 0u;
      }
      const Tokens<C> x{p, t, v, there.data(), padded};
      double lanes[kWide] = {};
      int64_t pairs = 0;
      for (int64_t i = 0; i < n; ++i) {
        C out = C(0);
        if (there[i] != 0 && args.direction != nullptr) {
          out = static_cast<C>(curve_row(x, i));
        } else if (there[i] != 0) {
          const Row<C> row = rank_row(x, i);
          out = static_cast<C>(row.slope);
          lanes[i % kWide] += row.loss;
          pairs += row.pairs;
        }
        static_cast<C*>(args.out)[b * n + i] = out;
      }
      if (args.direction != nullptr) continue;
      args.losses[b] = sum_by_halves<kWide>(lanes);
      args.pairs[b] = pairs;
    }
  });
}

}  // namespace

void pair_ranking(const PairRankingArgs& args, Context) {
  if (args.dtype == Dtype::float64)
    ranking_as<double>(args);
  else
    ranking_as<float>(args);
}

}  // namespace regkern::REGKERN_ISA
