// Products of a matrix with a narrow one: c = A b, or c += A b where `add`.
//
// A is a (M, K), or a (K, M) read transposed where trans_a, rows a_step floats apart; b (K, N) and
// c (M, N) dense. float32, row-major; N a multiple of kNarrowLanes, which callers pad with zeros.
// Any alignment of 4 bytes; c overlaps no input. Each c is summed by increasing k in blocks of
// kNarrowDepth (one block where trans_a: callers choose how many rows they pass), in float32 with
// fused multiply-adds where the instruction set has them; NaN and infinity as in IEEE 754. Nothing
// is packed: bytes moved are a and c once and b once per tile of rows, from the second-level cache.
#pragma once

#include "kernels/worker.h"

namespace edge {

struct NarrowArgs {
  const float* a = nullptr;
  Index a_step = 0;
  const float* b = nullptr;
  float* c = nullptr;
  Index m = 0, n = 0, k = 0;
  bool trans_a = false, add = false;
};

// The widest vector of any instruction set, in floats.
constexpr Index kNarrowLanes = 16;
// 256 rows of 32 columns of b: 32 KiB, what a first-level cache holds.
constexpr Index kNarrowDepth = 256;

constexpr Index narrow_width(Index n) {
  return (n + kNarrowLanes - 1) / kNarrowLanes * kNarrowLanes;
}

}  // namespace edge
