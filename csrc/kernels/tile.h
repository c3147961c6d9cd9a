// The micro-kernel under gemm and conv: a few rows times two vectors, held in registers over all of
// k.
#pragma once

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

constexpr Index kTileColumns = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kTileRows = 12;  // 24 of 32 registers hold sums
#elif defined(__aarch64__)
constexpr int kTileRows = 8;  // 16 of 32
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif
static_assert(kTileColumns <= kMaxTileColumns && kTileRows <= kMaxTileRows,
              "scratch is sized for these");

// Where the k-th column of A and the k-th row of B begin, relative to the tile's first.
struct StridedTaps {
  Index a_step, b_step;
  Index a(Index k) const { return k * a_step; }
  Index b(Index k) const { return k * b_step; }
};
struct Tap {
  std::int32_t a_offset, b_offset;
};
struct TableTaps {
  const Tap* taps;
  Index a(Index k) const { return taps[k].a_offset; }
  Index b(Index k) const { return taps[k].b_offset; }
};

// sum[i][v] += a[i * row_step + taps.a(k)] * the v-th vector of b[taps.b(k) ...], by increasing k.
template <int ROWS, int VECTORS, class Taps>
EDGE_INLINE void add_products(const float* a, Index row_step, Taps taps, Index depth,
                              const float* b, Vec (&sum)[ROWS][VECTORS]) {
  for (Index k = 0; k < depth; ++k) {
    const float* column = a + taps.a(k);
    const float* row = b + taps.b(k);
    Vec values[VECTORS];
    EDGE_UNROLL
    for (int v = 0; v < VECTORS; ++v) values[v] = load(row + v * kLanes);
    EDGE_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      // Three base pointers keep the addresses of twelve rows in a handful of registers.
      const Vec factor = splat((column + (i / 4) * (4 * row_step))[(i % 4) * row_step]);
      EDGE_UNROLL
      for (int v = 0; v < VECTORS; ++v) sum[i][v] += factor * values[v];
    }
  }
}

// out[i * pitch + j] = sum_k a[i * row_step + taps.a(k)] * b[taps.b(k) + j], j < VECTORS * kLanes,
// by increasing k; with ADD, after what is there.
template <int ROWS, int VECTORS, bool ADD, class Taps>
static void tile(const float* a, Index row_step, Taps taps, Index depth, const float* b, float* out,
                 Index pitch) {
  Vec sum[ROWS][VECTORS] = {};
  EDGE_UNROLL
  for (int i = 0; ADD && i < ROWS; ++i) {
    EDGE_UNROLL
    for (int v = 0; v < VECTORS; ++v) sum[i][v] = load(out + i * pitch + v * kLanes);
  }
  add_products<ROWS, VECTORS>(a, row_step, taps, depth, b, sum);
  EDGE_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    EDGE_UNROLL
    for (int v = 0; v < VECTORS; ++v) store(out + i * pitch + v * kLanes, sum[i][v]);
  }
}

template <int VECTORS, bool ADD = false, class Taps>
static void tile_rows(Index rows, const float* a, Index row_step, Taps taps, Index depth,
                      const float* b, float* out, Index pitch) {
  switch (rows) {
#define EDGE_TILE_CASE(n) \
  case n:                 \
    return tile<(n) <= kTileRows ? (n) : 1, VECTORS, ADD>(a, row_step, taps, depth, b, out, pitch)
    EDGE_TILE_CASE(1);
    EDGE_TILE_CASE(2);
    EDGE_TILE_CASE(3);
    EDGE_TILE_CASE(4);
    EDGE_TILE_CASE(5);
    EDGE_TILE_CASE(6);
    EDGE_TILE_CASE(7);
    EDGE_TILE_CASE(8);
    EDGE_TILE_CASE(9);
    EDGE_TILE_CASE(10);
    EDGE_TILE_CASE(11);
    EDGE_TILE_CASE(12);
#undef EDGE_TILE_CASE
    default:
      return;
  }
}

// Rows are cut into tiles of nearly equal height (16 = 8 + 8, not 12 + 4): short tiles starve the
// multipliers.
EDGE_INLINE Index row_tiles(Index rows) { return ceil_div(rows, kTileRows); }
EDGE_INLINE Index row_tile_begin(Index rows, Index tile) { return rows * tile / row_tiles(rows); }

}  // namespace EDGE_ISA
}  // namespace edge
