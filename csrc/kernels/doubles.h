// Vectors of float64, and the two loops that small dense factorisations are made of. Internal
// linkage.
#pragma once

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

constexpr Index kDoubles = kLanes / 2;
typedef double DoubleVec __attribute__((vector_size(EDGE_VECTOR_FLOATS * 4)));
typedef double UnalignedDoubleVec
    __attribute__((vector_size(EDGE_VECTOR_FLOATS * 4), aligned(8), may_alias));

EDGE_INLINE DoubleVec load(const double* p) {
  return *reinterpret_cast<const UnalignedDoubleVec*>(p);
}
EDGE_INLINE void store(double* p, DoubleVec v) { *reinterpret_cast<UnalignedDoubleVec*>(p) = v; }

// sum_i x_i y_i: four vectors of partial sums, then their lanes in order, then the tail.
EDGE_INLINE double dot(const double* x, const double* y, Index size) {
  DoubleVec sums[4] = {};
  Index i = 0;
  for (; i + 4 * kDoubles <= size; i += 4 * kDoubles) {
    EDGE_UNROLL
    for (int v = 0; v < 4; ++v) sums[v] += load(x + i + v * kDoubles) * load(y + i + v * kDoubles);
  }
  for (; i + kDoubles <= size; i += kDoubles) sums[0] += load(x + i) * load(y + i);
  double lanes[EDGE_VECTOR_FLOATS / 2];
  store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  double sum = 0;
  for (Index lane = 0; lane < kDoubles; ++lane) sum += lanes[lane];
  for (; i < size; ++i) sum += x[i] * y[i];
  return sum;
}

// y += factor x.
EDGE_INLINE void add_scaled(double factor, const double* x, double* y, Index size) {
  EDGE_INDEPENDENT
  for (Index i = 0; i < size; ++i) y[i] += factor * x[i];
}

}  // namespace EDGE_ISA
}  // namespace edge
