// Vectors of 4, 8 or 16 numbers whose lanes are shuffled: pairs taken apart and put together,
// squares transposed. Internal linkage.
#pragma once

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

#define EDGE_STRIP(...) __VA_ARGS__
// even/odd: every second float of 2 N neighbours; low/high: two vectors interleaved.
#define EDGE_LANES(N, EVEN, ODD, LOW, HIGH)                        \
  struct Lanes##N {                                                \
    static constexpr Index count = N;                              \
    typedef float Floats __attribute__((vector_size(4 * N)));      \
    typedef std::int32_t Ints __attribute__((vector_size(4 * N))); \
    typedef std::uint8_t Bytes __attribute__((vector_size(N)));    \
    static Floats even(Floats a, Floats b) {                       \
      return __builtin_shufflevector(a, b, EDGE_STRIP EVEN);       \
    }                                                              \
    static Floats odd(Floats a, Floats b) {                        \
      return __builtin_shufflevector(a, b, EDGE_STRIP ODD);        \
    }                                                              \
    static Floats low(Floats a, Floats b) {                        \
      return __builtin_shufflevector(a, b, EDGE_STRIP LOW);        \
    }                                                              \
    static Floats high(Floats a, Floats b) {                       \
      return __builtin_shufflevector(a, b, EDGE_STRIP HIGH);       \
    }                                                              \
  }
EDGE_LANES(4, (0, 2, 4, 6), (1, 3, 5, 7), (0, 4, 1, 5), (2, 6, 3, 7));
#if EDGE_VECTOR_FLOATS >= 8
EDGE_LANES(8, (0, 2, 4, 6, 8, 10, 12, 14), (1, 3, 5, 7, 9, 11, 13, 15), (0, 8, 1, 9, 2, 10, 3, 11),
           (4, 12, 5, 13, 6, 14, 7, 15));
#endif
#if EDGE_VECTOR_FLOATS >= 16
EDGE_LANES(16, (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
           (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31),
           (0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
           (8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#endif
#undef EDGE_LANES

template <class V>
EDGE_INLINE V get(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
EDGE_INLINE void put(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

#if EDGE_VECTOR_FLOATS >= 16
using WidestLanes = Lanes16;
#elif EDGE_VECTOR_FLOATS >= 8
using WidestLanes = Lanes8;
#else
using WidestLanes = Lanes4;
#endif

// The first `count` floats, zeros behind where that is less than a vector.
EDGE_INLINE Vec load_part(const float* from, Index count) {
  if (count >= kLanes) return load(from);
  alignas(64) float part[kLanes] = {};
  for (Index i = 0; i < count; ++i) part[i] = from[i];
  return load(part);
}

// to[q] = from[q] for q < count, count >= Lanes::count: the last two vectors overlap.
template <class Lanes>
EDGE_INLINE void copy_vectors(const float* from, Index count, float* to) {
  using Floats = typename Lanes::Floats;
  for (Index q = 0; q < count - Lanes::count; q += Lanes::count) put(to + q, get<Floats>(from + q));
  put(to + count - Lanes::count, get<Floats>(from + count - Lanes::count));
}
EDGE_INLINE void copy_run(const float* from, Index count, float* to) {
  if (count >= kLanes) return copy_vectors<WidestLanes>(from, count, to);
  if (count >= 4) return copy_vectors<Lanes4>(from, count, to);
  for (Index q = 0; q < count; ++q) to[q] = from[q];
}

// to[j] = max(sums[j] + bias, floor), with ADD of what is there too; a NaN stays one. Without a
// branch in the loop, see gemm.cpp.
template <bool ADD>
EDGE_INLINE void finish_run(const float* sums, float bias, float floor, float* to, Index count) {
  EDGE_INDEPENDENT
  for (Index j = 0; j < count; ++j) {
    const float value = (ADD ? to[j] + sums[j] : sums[j]) + bias;
    to[j] = value < floor ? floor : value;
  }
}

// lane i of the result = the sum of the lanes of vectors[i], neighbours first; kLanes vectors,
// which are used up.
EDGE_INLINE Vec sum_each(Vec* vectors) {
  for (Index half = kLanes / 2; half > 0; half /= 2) {
    EDGE_UNROLL
    for (Index i = 0; i < half; ++i) {
      vectors[i] = WidestLanes::even(vectors[2 * i], vectors[2 * i + 1]) +
                   WidestLanes::odd(vectors[2 * i], vectors[2 * i + 1]);
    }
  }
  return vectors[0];
}

// square[i][j] <-> square[j][i]: every round interleaves the first half of the vectors with the
// second.
EDGE_INLINE void transpose_square(Vec* square) {
  for (Index round = 1; round < kLanes; round *= 2) {
    Vec mixed[kLanes];
    EDGE_UNROLL
    for (Index i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = WidestLanes::low(square[i], square[i + kLanes / 2]);
      mixed[2 * i + 1] = WidestLanes::high(square[i], square[i + kLanes / 2]);
    }
    EDGE_UNROLL
    for (Index i = 0; i < kLanes; ++i) square[i] = mixed[i];
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
