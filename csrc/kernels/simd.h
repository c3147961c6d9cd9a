// Vectors of the instruction set being compiled for, through the vector extensions of GCC and
// Clang: the compiler picks the instructions, one source serves all of them. Everything here has
// internal linkage.
#pragma once

#include "kernels/declare.h"

#if defined(__AVX512F__)
#define EDGE_VECTOR_FLOATS 16
#elif defined(__AVX__)
#define EDGE_VECTOR_FLOATS 8
#else
#define EDGE_VECTOR_FLOATS 4
#endif

#define EDGE_INLINE static inline __attribute__((always_inline, unused))
#define EDGE_INLINE_MEMBER inline __attribute__((always_inline))

// No iteration of the next loop reads what an earlier one wrote; outputs that *are* an input are
// fine.
#if defined(__clang__)
#define EDGE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define EDGE_UNROLL _Pragma("unroll")
#define EDGE_UNROLL_4 _Pragma("clang loop unroll_count(4)")
#else
#define EDGE_INDEPENDENT _Pragma("GCC ivdep")
#define EDGE_UNROLL _Pragma("GCC unroll 16")
#define EDGE_UNROLL_4 _Pragma("GCC unroll 4")
#endif

namespace edge {
namespace EDGE_ISA {

constexpr Index kLanes = EDGE_VECTOR_FLOATS;
typedef float Vec __attribute__((vector_size(EDGE_VECTOR_FLOATS * 4)));
// The same vector at any address that is a multiple of 4.
typedef float UnalignedVec
    __attribute__((vector_size(EDGE_VECTOR_FLOATS * 4), aligned(4), may_alias));

EDGE_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
EDGE_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
EDGE_INLINE Vec splat(float x) { return x - Vec{}; }

EDGE_INLINE float sum_lanes(Vec v) {
  float lanes[EDGE_VECTOR_FLOATS];
  store(lanes, v);
  // Pairwise, so that the order is the same tree for every caller.
  for (Index half = kLanes / 2; half > 0; half /= 2) {
    for (Index i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

EDGE_INLINE Index smaller(Index a, Index b) { return a < b ? a : b; }
EDGE_INLINE Index larger(Index a, Index b) { return a > b ? a : b; }
EDGE_INLINE Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }  // a >= 0, b > 0

// A worker's part of `units` equal pieces of work: [begin, end), contiguous, in order, all of them
// covered.
struct Share {
  Index begin, end;
};
EDGE_INLINE Share share_of(Index units, const Worker& worker) {
  return {units * worker.index / worker.count, units * (worker.index + 1) / worker.count};
}

}  // namespace EDGE_ISA
}  // namespace edge
