#pragma once

#include <limits>
#include <tuple>

#include "transport/partial.h"
#include "transport/solve.h"

// The loop of partial transport over any engine: each half-step finds the potentials of its side
// and the common level h that are optimal for those of the other side. Nobody waits for a device;
// on the CPU the loop looks at `done` and stops early.

namespace regkern::transport {
namespace {

struct PartialProblem {
  Tensor like;
  Tensor a, b;          // (B, n), (B, m), double and dense
  Tensor cap_a, cap_b;  // likewise
  Tensor mass, eps;     // (B)
  MaybeTensor start;    // g to begin with, (B, m); 0 without
  std::optional<double> tol;
  int64_t max_iter, check_every;
};

// f, g, h, error, iterations, status.
using PartialSolution = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline void check_partial(const Checks& check, const PartialProblem& problem, int64_t batch,
                          int64_t n, int64_t m) {
  const auto numbers = [&](const Tensor& t, const char* name, std::initializer_list<int64_t> size) {
    check.same_device(t, name, problem.like);
    check.dtype(t, name, ScalarType::Double, "float64");
    check.shape(t, name, size);
    check.that(t.is_contiguous(), std::string("contiguous `") + name + "`", "a strided one");
  };
  numbers(problem.a, "a", {batch, n});
  numbers(problem.b, "b", {batch, m});
  numbers(problem.cap_a, "cap_a", {batch, n});
  numbers(problem.cap_b, "cap_b", {batch, m});
  numbers(problem.mass, "mass", {batch});
  numbers(problem.eps, "eps", {batch});
  if (problem.start.has_value()) numbers(*problem.start, "start", {batch, m});
  check.that(problem.max_iter >= 0, "`max_iter` of at least 0", std::to_string(problem.max_iter));
  check.that(problem.check_every >= 1, "`check_every` of at least 1",
             std::to_string(problem.check_every));
}

inline PartialSolution solve_partial(Transform& engine, const PartialProblem& problem) {
  const int64_t batch = engine.batch, n = engine.n, m = engine.m;
  const Tensor& like = problem.like;
  const auto zeros = [&](std::vector<int64_t> sizes, ScalarType dtype = ScalarType::Double) {
    return filled(like, sizes, dtype, 0.0);
  };
  const Tensor f = zeros({batch, n}), level = zeros({batch});
  const Tensor g = problem.start.has_value() ? double_copy(*problem.start) : zeros({batch, m});
  const Tensor error =
      filled(like, {batch}, ScalarType::Double, std::numeric_limits<double>::infinity());
  const Tensor iterations = zeros({batch}, ScalarType::Int);
  const Tensor status = filled(like, {batch}, ScalarType::Char, kStopped);
  if (batch == 0) return {f, g, level, error, iterations, status};
  const Tensor raw_a = zeros({batch, n}), raw_b = zeros({batch, m});
  const Tensor done = zeros({batch}, ScalarType::Byte);
  const double* const eps = const_data<double>(problem.eps);
  PartialArgs side{};
  side.batch = batch;
  side.mass = const_data<double>(problem.mass);
  side.eps = eps;
  side.level = mutable_data<double>(level);
  side.stops = problem.tol.has_value();
  side.tol = problem.tol.value_or(0.0);
  side.error = mutable_data<double>(error);
  side.iterations = mutable_data<int32_t>(iterations);
  side.status = mutable_data<int8_t>(status);
  side.done = mutable_data<uint8_t>(done);
  side.moves = true;
  PartialArgs rows = side, columns = side;
  rows.size = n;
  rows.raw = const_data<double>(raw_a);
  rows.weight = const_data<double>(problem.a);
  rows.cap = const_data<double>(problem.cap_a);
  rows.potential = mutable_data<double>(f);
  columns.size = m;
  columns.raw = const_data<double>(raw_b);
  columns.weight = const_data<double>(problem.b);
  columns.cap = const_data<double>(problem.cap_b);
  columns.potential = mutable_data<double>(g);
  for (int64_t t = 0;; ++t) {
    // Of potentials that have had a whole iteration.
    rows.iteration = t;
    rows.moves = t < problem.max_iter;
    rows.looks = !rows.moves || (t > 0 && t % problem.check_every == 0);
    engine.softmin(Side::rows, {eps, columns.potential, rows.potential, mutable_data<double>(raw_a),
                                side.done});
    backend::transport_partial(rows, engine.context);
    if (!rows.moves) break;
    if (kValuesReadable && side.stops && rows.looks && all_done(side.done, batch)) break;
    engine.softmin(Side::columns, {eps, rows.potential, columns.potential,
                                   mutable_data<double>(raw_b), side.done});
    backend::transport_partial(columns, engine.context);
  }
  return {f, g, level, error, iterations, status};
}

}  // namespace
}  // namespace regkern::transport
