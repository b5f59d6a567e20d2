#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/isa.h"
#include "core/macros.h"
#include "core/math.h"

// The assignment of n rows to n of m ≥ n columns with the least total cost, by shortest augmenting
// paths: rows are added one by one, and Dijkstra's search in the reduced costs C − u − v ≥ 0 finds
// the cheapest way to make room for the next. Of equally far columns a free one comes first, then
// the one with the lowest index. In double.

namespace regkern::transport {

constexpr int kAssignmentLanes = 128;
constexpr int kAssigned = 0, kUnassignable = 2;

struct AssignmentArgs {
  Dtype dtype;
  int64_t batch, rows, columns;
  const void* cost;
  int32_t* column;   // (batch, rows), of each row, or −1
  double *u, *v;     // duals of rows and columns
  double* value;     // (batch)
  int8_t* status;    // (batch)
  double* distance;  // (batch, columns)
  int32_t* before;   // (batch, columns): the row from which a column was reached
  int32_t* row;      // (batch, columns), of each column, or −1
  int32_t* settled;  // (batch, columns)
};

// A Team is whoever works on a problem: each(n, f) has element i with one member, and most() ends
// for all of them together.
template <typename T, typename Team>
REGKERN_HD void assign_problem(Team& team, const AssignmentArgs& args, int64_t problem) {
  const int64_t n = args.rows, m = args.columns;
  const double inf = __builtin_inf();
  const T* cost = static_cast<const T*>(args.cost) + problem * n * m;
  int32_t* column = args.column + problem * n;
  double* u = args.u + problem * n;
  double* v = args.v + problem * m;
  double* distance = args.distance + problem * m;
  int32_t* before = args.before + problem * m;
  int32_t* row = args.row + problem * m;
  int32_t* settled = args.settled + problem * m;
  team.each(n, [=](int64_t i) {
    column[i] = -1;
    u[i] = 0.0;
  });
  team.each(m, [=](int64_t j) {
    row[j] = -1;
    v[j] = 0.0;
  });
  const double wrong = team.most(n * m, [=](int64_t e) {
    const auto c = static_cast<double>(widen(cost[e]));
    return c > -inf ? 0.0 : 1.0;
  });
  bool bad = wrong > 0.0;
  for (int64_t start = 0; start < n && !bad; ++start) {
    team.each(m, [=](int64_t j) {
      distance[j] = inf;
      settled[j] = 0;
    });
    int64_t i = start, sink = -1;
    double reached = 0.0;
    while (sink < 0) {
      const double base = reached - u[i];
      const T* c = cost + i * m;
      const auto from = static_cast<int32_t>(i);
      team.each(m, [=](int64_t j) {
        const double d = base + static_cast<double>(widen(c[j])) - v[j];
        const bool nearer = settled[j] == 0 && d < distance[j];
        distance[j] = nearer ? d : distance[j];
        before[j] = nearer ? from : before[j];
      });
      reached = -team.most(m, [=](int64_t j) { return settled[j] == 0 ? -distance[j] : -inf; });
      if (!(reached < inf)) break;
      const double least = reached;
      const double place = -team.most(m, [=](int64_t j) {
        const bool here = settled[j] == 0 && distance[j] == least;
        return here ? -static_cast<double>(row[j] < 0 ? j : j + m) : -inf;
      });
      const auto at = static_cast<int64_t>(place);
      const int64_t j = at < m ? at : at - m;
      if (at < m)
        sink = j;
      else
        i = row[j];
      team.own(j, [=] { settled[j] = 1; });
    }
    if (sink < 0) {
      bad = true;
      break;
    }
    // The sink changes by nothing: it was reached at the end.
    team.each(m, [=](int64_t j) {
      if (settled[j] == 0 || row[j] < 0) return;
      u[row[j]] += reached - distance[j];
      v[j] -= reached - distance[j];
    });
    team.wait();
    team.one([=] {
      u[start] += reached;
      int64_t j = sink, next = 0;
      for (int64_t from = -1; from != start; j = next) {
        from = before[j];
        next = column[from];
        row[j] = static_cast<int32_t>(from);
        column[from] = static_cast<int32_t>(j);
      }
    });
    team.wait();
  }
  const bool known = !bad;
  const double nan = __builtin_nan("");
  const double value = team.sum(n, [=](int64_t i) {
    return known ? static_cast<double>(widen(cost[i * m + column[i]])) : 0.0;
  });
  team.wait();
  team.each(n, [=](int64_t i) {
    column[i] = known ? column[i] : -1;
    u[i] = known ? u[i] : nan;
  });
  team.each(m, [=](int64_t j) { v[j] = known ? v[j] : nan; });
  team.one([=] {
    args.value[problem] = wrong > 0.0 ? nan : (known ? value : inf);
    args.status[problem] = known ? kAssigned : kUnassignable;
  });
  team.wait();
}

}  // namespace regkern::transport

namespace regkern {
REGKERN_DECLARE_KERNEL(assignment, transport::AssignmentArgs)
}
