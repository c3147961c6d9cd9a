// c[m, n] = sum_k A[m, k] B[k, n] + bias[n], then max(., 0) where relu.
//
// A is a (M, K), or a (K, M) transposed where trans_a; B is b (K, N), or b (N, K) transposed where
// trans_b; bias (N) or null; c (M, N). float32, row-major, dense but for a_step; c overlaps no
// input. Any alignment of 4 bytes. Each c is summed by increasing k in float32, in blocks of
// kGemmDepth, with fused multiply-adds where the instruction set has them. NaN and infinity travel
// as in IEEE 754; relu leaves a NaN a NaN. Bytes moved: a, c and bias once, b once per 96 rows of
// c, when a and c fit the cache.
#pragma once

#include "kernels/worker.h"

namespace edge {

struct GemmArgs {
  const float* a = nullptr;
  const float* b = nullptr;
  const float* bias = nullptr;
  float* c = nullptr;
  Index m = 0, n = 0, k = 0;
  bool trans_a = false, trans_b = false, relu = false;
  Index a_step = 0;  // floats from one row of a, as it is stored, to the next; 0: dense
};

// Deepest block of k: a packed tile of B (512 x 32 floats, 64 KiB) stays in the second-level cache.
constexpr Index kGemmDepth = 512;
// Widest tile of any instruction set, in floats: two AVX-512 vectors.
constexpr Index kMaxTileColumns = 32;
constexpr Index kMaxTileRows = 12;
// Rows that share one packed tile of B; a worker's unit of work.
constexpr Index kGemmRows = 96;

constexpr Index gemm_scratch_floats(Index k) {
  return (k < kGemmDepth ? k : kGemmDepth) * kMaxTileColumns;
}

}  // namespace edge
