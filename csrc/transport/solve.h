#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "core/op.h"
#include "transport/loop.h"

// The loop of Sinkhorn's iteration, for every engine and both backends: host code of the
// ops_<subject>.cpp files. An engine plugs in like this:
//
//   1. It derives from Transform and implements `softmin`, the soft c-transform of one side:
//
//          rows      to_i = −ε ln Σ_j b_j e^((from_j − C_ij)/ε)
//          columns   to_j = −ε ln Σ_i a_i e^((from_i − C_ij)/ε)
//
//      for each problem p of the batch whose done[p] is 0 (`done` may be null: all of them; a
//      kernel reads it on the device). `eps` has one ε for each problem, and changes from call to
//      call under ε scaling. `near` is where `to` was before, or zeros: a hint for the shift of a
//      log-sum-exp, to be ignored at will; it may be the same memory as `to`. Everything is double,
//      dense and on the device of the problem: (B, n) for rows, (B, m) for columns.
//   2. Points of weight 0 are left out of sums, but have a potential of their own. from_j = ∞ means
//      a point without partners: left out as well. A point with no partners gets to_i = ∞. NaN
//      stays NaN.
//   3. It may override `full`, a whole iteration: f_raw from g, f_next = relaxed(f, f_raw), g_raw
//      from f_next (transport/loop.h). What is written is f_raw, f_next and g_raw alone.
//   4. Its op checks arguments, builds a Problem and Settings, and returns solve(…).
//
// No call waits for the device. On the CPU the loop looks at `done` and stops early.

namespace regkern::transport {
namespace {

enum class Side { rows, columns };

// What a sweep of one side needs.
struct Sweep {
  const double* eps;    // (B)
  const double* from;   // potentials of the other side
  const double* near;   // potentials of this side before, or zeros
  double* to;           // potentials of this side
  const uint8_t* done;  // (B), or null
};

struct Problem {
  Tensor like;            // where everything is
  Tensor a, b;            // (B, n), (B, m), double and dense
  Tensor rho;             // (2, B), double: of the rows, of the columns; ∞ is hard
  Tensor eps;             // (B), double
  MaybeTensor eps_start;  // (B), double: where ε scaling begins
  MaybeTensor f, g;       // where the iteration begins
};

struct Settings {
  std::optional<double> tol;
  int64_t max_iter, check_every;
  Acceleration acceleration;
  double omega, scaling;
};

// What an iteration of `full` has and gives.
struct Iteration {
  const double *eps, *rho_a, *omega;
  const double *f, *g;
  double *f_raw, *f_next, *g_raw;
  const uint8_t* done;
};

class Transform {
 public:
  Transform(int64_t batch, int64_t n, int64_t m, Context context)
      : batch(batch), n(n), m(m), context(context) {}
  virtual ~Transform() = default;

  virtual void softmin(Side side, const Sweep& sweep) = 0;

  virtual void full(const Iteration& it) {
    softmin(Side::rows, {it.eps, it.g, it.f, it.f_raw, it.done});
    relax(it);
    softmin(Side::columns, {it.eps, it.f_next, it.g, it.g_raw, it.done});
  }

  const int64_t batch, n, m;
  const Context context;

 protected:
  void relax(const Iteration& it) {
    backend::transport_relax(
        RelaxArgs{batch, n, it.f_raw, it.f, it.f_next, it.eps, it.rho_a, it.omega, it.done},
        context);
  }
};

struct Solution {
  Tensor f, g;        // (B, n), (B, m), double
  Tensor error;       // (B), double: relative to the mass
  Tensor iterations;  // (B), int32
  Tensor status;      // (B), int8: converged, stopped, infeasible or not a number
};

inline Tensor filled(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype,
                     double value) {
  Tensor t = new_tensor(like, sizes, dtype);
  if (value == 0.0)
    torch::stable::zero_(t);
  else
    torch::stable::fill_(t, value);
  return t;
}

inline Tensor double_copy(const Tensor& t) {
  Tensor copy = new_tensor(t, sizes_of(t), ScalarType::Double);
  torch::stable::copy_(copy, t);
  return copy;
}

// The checks of what every solver's op is given.
inline void check_problem(const Checks& check, const Problem& problem, int64_t batch, int64_t n,
                          int64_t m) {
  const auto dense_double = [&](const Tensor& t, const char* name,
                                std::initializer_list<int64_t> sizes) {
    check.same_device(t, name, problem.like);
    check.dtype(t, name, ScalarType::Double, "float64");
    check.shape(t, name, sizes);
    check.that(t.is_contiguous(), std::string("contiguous `") + name + "`", "a strided one");
  };
  dense_double(problem.a, "a", {batch, n});
  dense_double(problem.b, "b", {batch, m});
  dense_double(problem.rho, "rho", {2, batch});
  dense_double(problem.eps, "eps", {batch});
  if (problem.eps_start.has_value()) dense_double(*problem.eps_start, "eps_start", {batch});
  if (problem.f.has_value()) dense_double(*problem.f, "f", {batch, n});
  if (problem.g.has_value()) dense_double(*problem.g, "g", {batch, m});
}

inline void check_settings(const Checks& check, const Settings& settings) {
  check.that(settings.max_iter >= 0, "`max_iter` of at least 0", std::to_string(settings.max_iter));
  check.that(settings.check_every >= 1, "`check_every` of at least 1",
             std::to_string(settings.check_every));
  check.that(settings.omega > 0.0 && settings.omega < 2.0, "`omega` in (0, 2)",
             std::to_string(settings.omega));
  check.that(settings.scaling > 0.0 && settings.scaling <= 1.0, "`scaling` in (0, 1]",
             std::to_string(settings.scaling));
}

inline bool all_done(const uint8_t* done, int64_t batch) {
  for (int64_t p = 0; p < batch; ++p)
    if (done[p] == 0) return false;
  return true;
}

inline Solution solve(Transform& engine, const Problem& problem, const Settings& settings) {
  const int64_t batch = engine.batch, n = engine.n, m = engine.m;
  const Tensor& like = problem.like;
  const auto zeros = [&](std::vector<int64_t> sizes, ScalarType dtype = ScalarType::Double) {
    return filled(like, sizes, dtype, 0.0);
  };
  Solution found{problem.f.has_value() ? double_copy(*problem.f) : zeros({batch, n}),
                 problem.g.has_value() ? double_copy(*problem.g) : zeros({batch, m}),
                 filled(like, {batch}, ScalarType::Double, std::numeric_limits<double>::infinity()),
                 zeros({batch}, ScalarType::Int),
                 filled(like, {batch}, ScalarType::Char, kStopped)};
  if (batch == 0) return found;
  Tensor eps = double_copy(problem.eps_start.has_value() ? *problem.eps_start : problem.eps);
  Tensor omega = filled(like, {batch}, ScalarType::Double, settings.omega);
  Tensor f_raw = zeros({batch, n}), f_next = zeros({batch, n}), g_raw = zeros({batch, m});
  Tensor last = double_copy(found.error), done = zeros({batch}, ScalarType::Byte);
  const bool anderson = settings.acceleration == Acceleration::anderson;
  Tensor history = new_tensor(like, {anderson ? batch * kHistory * m : 0}, ScalarType::Double);
  const bool adaptive = settings.acceleration == Acceleration::adaptive;
  Tensor products = zeros({anderson || adaptive ? batch * kProducts : 0});
  Tensor images = zeros({anderson ? batch : 0}, ScalarType::Int);
  const double* const rho_a = const_data<double>(problem.rho);
  const double* const rho_b = rho_a + batch;
  double* const f = mutable_data<double>(found.f);
  double* const g = mutable_data<double>(found.g);

  if (problem.f.has_value() && !problem.g.has_value())
    engine.softmin(Side::columns, {const_data<double>(eps), f, g, g, nullptr});
  const Iteration iteration{const_data<double>(eps),
                            rho_a,
                            const_data<double>(omega),
                            f,
                            g,
                            mutable_data<double>(f_raw),
                            mutable_data<double>(f_next),
                            mutable_data<double>(g_raw),
                            const_data<uint8_t>(done)};
  StepArgs step{};
  step.batch = batch;
  step.n = n;
  step.m = m;
  step.max_iter = settings.max_iter;
  step.check_every = settings.check_every;
  step.acceleration = settings.acceleration;
  step.stops = settings.tol.has_value();
  step.tol = settings.tol.value_or(0.0);
  step.scaling = problem.eps_start.has_value() ? settings.scaling : 0.0;
  step.a = const_data<double>(problem.a);
  step.b = const_data<double>(problem.b);
  step.rho_a = rho_a;
  step.rho_b = rho_b;
  step.eps_end = const_data<double>(problem.eps);
  step.eps = mutable_data<double>(eps);
  step.f = f;
  step.g = g;
  step.f_raw = iteration.f_raw;
  step.f_next = iteration.f_next;
  step.g_raw = iteration.g_raw;
  step.omega = mutable_data<double>(omega);
  step.error = mutable_data<double>(found.error);
  step.last_error = mutable_data<double>(last);
  step.iterations = mutable_data<int32_t>(found.iterations);
  step.status = mutable_data<int8_t>(found.status);
  step.done = mutable_data<uint8_t>(done);
  step.history = mutable_data<double>(history);
  step.products = mutable_data<double>(products);
  step.images = mutable_data<int32_t>(images);
  for (int64_t t = 1; t <= settings.max_iter; ++t) {
    step.iteration = t;
    engine.full(iteration);
    backend::transport_step(step, engine.context);
    if (kValuesReadable && step.stops && t % settings.check_every == 0 &&
        all_done(step.done, batch))
      break;
  }
  // Where g is not the transform of f, a last plain half-step makes it that; f̂ then has the error.
  const double* const eps_end = const_data<double>(problem.eps);
  if (settings.acceleration != Acceleration::none) {
    Tensor one = filled(like, {batch}, ScalarType::Double, 1.0);
    Tensor none = zeros({batch}, ScalarType::Byte);
    engine.softmin(Side::columns, {eps_end, f, g, step.g, nullptr});
    backend::transport_relax(RelaxArgs{batch, m, g, g, g, eps_end, rho_b, const_data<double>(one),
                                       const_data<uint8_t>(none)},
                             engine.context);
  }
  engine.softmin(Side::rows, {eps_end, g, f, mutable_data<double>(f_raw), nullptr});
  EndArgs end{};
  end.batch = batch;
  end.n = n;
  end.m = m;
  end.stops = step.stops;
  end.tol = step.tol;
  end.a = step.a;
  end.b = step.b;
  end.rho_a = rho_a;
  end.rho_b = rho_b;
  end.eps = eps_end;
  end.f_raw = const_data<double>(f_raw);
  end.f = f;
  end.g = g;
  end.error = step.error;
  end.status = step.status;
  backend::transport_end(end, engine.context);
  return found;
}

}  // namespace
}  // namespace regkern::transport
