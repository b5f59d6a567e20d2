#include "sparse/gate_rows.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace regkern::REGKERN_ISA {
namespace {

using namespace sparse;

constexpr int64_t kGrain = 8192;  // elements

int64_t rows_of_grain(int64_t n) { return n < kGrain ? kGrain / (n > 0 ? n : 1) : 1; }

int64_t whole_blocks(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// How many are at `least` or above.
template <typename M>
int64_t count_from(const M* m, int64_t n, M least) {
  constexpr int64_t kPart = int64_t{1} << 20;
  int64_t all = 0;
  for (int64_t first = 0; first < n; first += kPart) {
    const int64_t end = first + kPart < n ? first + kPart : n;
    M count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = first; i < end; ++i) count += m[i] >= least ? 1 : 0;
    all += count;
  }
  return all;
}

template <typename M>
int64_t mass_from(const M* m, const int32_t* mass, int64_t n, M least) {
  int64_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += m[i] >= least ? mass[i] : 0;
  return sum;
}

template <typename T>
void row_select_as(const RowSelectArgs& args) {
  using C = compute_t<T>;
  using M = magnitude_t<C>;
  const int64_t n = args.n, room = whole_blocks(n);
  parallel_for(args.rows, rows_of_grain(n), [&](int64_t begin, int64_t end) {
    const Scratch<C> row(room);
    const Scratch<M> m(room);
    for (int64_t r = begin; r < end; ++r) {
      C* const x = row.data();
      M* const bits = m.data();
      load_elements(static_cast<const T*>(args.scores) + r * n, n, x);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) bits[i] = magnitude_of(x[i]);
      const M t = largest_reaching<M>(kHighestBit<T>, kLowestBit<T>, [&](M least) {
        return count_from(bits, n, least) >= args.k;
      });
      int64_t ties = args.k - count_from(bits, n, static_cast<M>(t + 1));
      if (args.values != args.scores)
        load_elements(static_cast<const T*>(args.values) + r * n, n, x);
      // Ties up to the last that is taken, and none behind it.
      int64_t last = 0;
      for (; ties > 0; ++last) ties -= bits[last] == t ? 1 : 0;
#pragma omp simd
      for (int64_t i = 0; i < last; ++i)
        x[i] = choose((bits[i] >= t) | !(x[i] == x[i]), x[i], C(0));
#pragma omp simd
      for (int64_t i = last; i < n; ++i) x[i] = choose((bits[i] > t) | !(x[i] == x[i]), x[i], C(0));
      store_elements(x, n, static_cast<T*>(args.y) + r * n);
    }
  });
}

template <typename T>
void mass_gate_as(const MassGateArgs& args) {
  using C = compute_t<T>;
  using M = magnitude_t<C>;
  const int64_t n = args.n, room = whole_blocks(n);
  parallel_for(args.rows, rows_of_grain(n), [&](int64_t begin, int64_t end) {
    const Scratch<C> row(room);
    const Scratch<M> m(room);
    const Scratch<int32_t> masses(room);
    for (int64_t r = begin; r < end; ++r) {
      C* const x = row.data();
      M* const bits = m.data();
      int32_t* const mass = masses.data();
      load_elements(static_cast<const T*>(args.peaks) + r * n, n, x);
      M top = 0;
#pragma omp simd reduction(max : top)
      for (int64_t i = 0; i < n; ++i) {
        bits[i] = magnitude_of(x[i]);
        top = bits[i] > top ? bits[i] : top;
      }
      T* const gates = static_cast<T*>(args.gates) + r * n;
      if (top >= kInfinityBits<C>) {
        const C nan = bit_cast<C>(static_cast<M>(kInfinityBits<C> | (kInfinityBits<C> >> 1)));
        for (int64_t i = 0; i < n; ++i) narrow(nan, gates + i);
        continue;
      }
      const double scale = mass_scale(static_cast<double>(bit_cast<C>(top)));
      int64_t total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < n; ++i) {
        mass[i] = mass_of(x[i], scale);
        total += mass[i];
      }
      const int64_t need = mass_needed(args.share, total);
      int64_t last = 0;
      M t = kInfinityBits<C>;
      if (need > 0) {
        t = largest_reaching<M>(kHighestBit<T>, kLowestBit<T>,
                                [&](M least) { return mass_from(bits, mass, n, least) >= need; });
        int64_t rest = need - mass_from(bits, mass, n, static_cast<M>(t + 1));
        for (; rest > 0; ++last) rest -= bits[last] == t ? mass[last] : 0;
      }
#pragma omp simd
      for (int64_t i = 0; i < last; ++i) x[i] = bits[i] >= t ? C(1) : C(0);
#pragma omp simd
      for (int64_t i = last; i < n; ++i) x[i] = bits[i] > t ? C(1) : C(0);
      store_elements(x, n, gates);
    }
  });
}

// The larger of `most` and the magnitudes of n neighbours.
template <typename T>
magnitude_t<compute_t<T>> peak_of(const T* x, int64_t n) {
  using M = magnitude_t<compute_t<T>>;
  M most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    const M bits = magnitude_of(widen(x[i]));
    most = bits > most ? bits : most;
  }
  return most;
}

template <typename T>
void plane_peak_as(const PlanePeakArgs& args) {
  using C = compute_t<T>;
  using M = magnitude_t<C>;
  const T* const y = static_cast<const T*>(args.y);
  T* const peaks = static_cast<T*>(args.peaks);
  const int64_t channels = args.channels, plane = args.plane;
  if (!args.channels_last) {
    parallel_for(args.batch * channels, rows_of_grain(plane), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        narrow(bit_cast<C>(peak_of(y + p * plane, plane)), peaks + p);
    });
    return;
  }
  parallel_for(args.batch, rows_of_grain(plane * channels), [&](int64_t begin, int64_t end) {
    const Scratch<M> most(channels);
    for (int64_t b = begin; b < end; ++b) {
      M* const m = most.data();
      for (int64_t c = 0; c < channels; ++c) m[c] = 0;
      for (int64_t s = 0; s < plane; ++s) {
        const T* const x = y + (b * plane + s) * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
          const M bits = magnitude_of(widen(x[c]));
          m[c] = bits > m[c] ? bits : m[c];
        }
      }
      for (int64_t c = 0; c < channels; ++c) narrow(bit_cast<C>(m[c]), peaks + b * channels + c);
    }
  });
}

}  // namespace

void row_select(const RowSelectArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { row_select_as<decltype(zero)>(args); });
}

void mass_gate(const MassGateArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { mass_gate_as<decltype(zero)>(args); });
}

void plane_peak(const PlanePeakArgs& args, Context) {
  dispatch_floating(args.dtype, [&](auto zero) { plane_peak_as<decltype(zero)>(args); });
}

}  // namespace regkern::REGKERN_ISA
