#include "sparse/grow.h"

#include <cstring>

#include "core/parallel.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace regkern::REGKERN_ISA {
namespace {

using namespace sparse;

constexpr int kWord = 64;
constexpr int64_t kGrain = 32768;  // scores

// Bit i: not x[i] ≤ t.
inline uint64_t above(const float* x, float t) {
  uint64_t word = 0;
#if defined(__AVX512F__)
  const __m512 threshold = _mm512_set1_ps(t);
  for (int i = 0; i < kWord; i += 16)
    word |= uint64_t{_mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), threshold, _CMP_NLE_UQ)} << i;
#elif defined(__AVX2__)
  const __m256 threshold = _mm256_set1_ps(t);
  for (int i = 0; i < kWord; i += 8) {
    const __m256 more = _mm256_cmp_ps(_mm256_loadu_ps(x + i), threshold, _CMP_NLE_UQ);
    word |= static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(more))) << i;
  }
#else
  for (int i = 0; i < kWord; ++i) word |= uint64_t{!(x[i] <= t)} << i;
#endif
  return word;
}
inline uint64_t above(const double* x, double t) {
  uint64_t word = 0;
#if defined(__AVX512F__)
  const __m512d threshold = _mm512_set1_pd(t);
  for (int i = 0; i < kWord; i += 8)
    word |= uint64_t{_mm512_cmp_pd_mask(_mm512_loadu_pd(x + i), threshold, _CMP_NLE_UQ)} << i;
#elif defined(__AVX2__)
  const __m256d threshold = _mm256_set1_pd(t);
  for (int i = 0; i < kWord; i += 4) {
    const __m256d more = _mm256_cmp_pd(_mm256_loadu_pd(x + i), threshold, _CMP_NLE_UQ);
    word |= static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_pd(more))) << i;
  }
#else
  for (int i = 0; i < kWord; ++i) word |= uint64_t{!(x[i] <= t)} << i;
#endif
  return word;
}

// Bits that are taken before anyone asks whether there are as many: a wrong guess about that costs
// more than they do.
constexpr int kEager = 4;

// The columns and magnitudes above the threshold, one after the other; how many. Up to kEager more
// are written.
template <typename C>
inline int64_t take(const C* row, int64_t words, C threshold, int32_t* columns, C* magnitudes) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) {
    uint64_t left = above(row + w * kWord, threshold);
    if (left == 0) continue;
    const int bits = __builtin_popcountll(left);
    const auto put = [&](int64_t at) {
      const int64_t c = w * kWord + __builtin_ctzll(left | uint64_t{1} << (kWord - 1));
      columns[at] = static_cast<int32_t>(c);
      magnitudes[at] = row[c];
      left &= left - 1;
    };
    for (int i = 0; i < kEager; ++i) put(count + i);
    for (int i = kEager; i < bits; ++i) put(count + i);
    count += bits;
  }
  return count;
}

template <typename C>
void scan(const GrowScanArgs& args) {
  const C* const scores = static_cast<const C*>(args.scores);
  C* const magnitudes = static_cast<C*>(args.magnitudes);
  const C threshold = *static_cast<const C*>(args.threshold);
  const int64_t columns = args.columns, words = grow_words(columns);
  const int64_t grain = columns > 0 && kGrain / columns > 1 ? kGrain / columns : 1;
  // What a thread finds stands side by side from the place of its first score on: where the
  // threshold lets few pass, little of this memory is touched.
  const int64_t pitch = columns + kEager;
  const Scratch<int32_t> own_columns(args.rows * pitch);
  const Scratch<C> own_magnitudes(args.rows * pitch);
  const Scratch<int64_t> own(args.rows);
  parallel_for(args.rows, grain, [&](int64_t from, int64_t to) {
    const Scratch<C> row(words * kWord);
    for (int64_t i = columns; i < words * kWord; ++i) row[i] = C(-1);
    int64_t at = from * pitch;
    for (int64_t r = from; r < to; ++r) {
      const C* const in = scores + r * columns;
      C* const out = row.data();
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) out[i] = fabs(in[i]);
      // Entries are below every threshold.
      const int64_t last = args.offsets[r + 1];
      for (int64_t e = args.offsets[r]; e < last; ++e) out[args.index[e]] = C(-1);
      own[r] = at;
      args.ends[r] =
          take(out, words, threshold, own_columns.data() + at, own_magnitudes.data() + at);
      at += args.ends[r];
    }
  });
  int64_t found = *args.found;
  const int64_t before = found;
  for (int64_t r = 0; r < args.rows; ++r) args.ends[r] = found += args.ends[r];
  *args.found = found;
  parallel_for(args.rows, grain, [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) {
      const int64_t begin = r > 0 ? args.ends[r - 1] : before;
      const int64_t end = args.ends[r] < args.capacity ? args.ends[r] : args.capacity;
      const int64_t first = (args.first + r) * columns;
      const int32_t* const own_column = own_columns.data() + own[r];
      const C* const own_magnitude = own_magnitudes.data() + own[r];
      int64_t* const place = args.places + begin;
      C* const magnitude = magnitudes + begin;
#pragma omp simd
      for (int64_t i = 0; i < end - begin; ++i) place[i] = first + own_column[i];
#pragma omp simd
      for (int64_t i = 0; i < end - begin; ++i) magnitude[i] = own_magnitude[i];
    }
  });
}

}  // namespace

void sparse_grow_scan(const GrowScanArgs& args, Context) {
  args.wide ? scan<double>(args) : scan<float>(args);
}

}  // namespace regkern::REGKERN_ISA
