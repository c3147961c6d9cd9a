// Sums of products of float32 in float64: G = Y^T Y, and the squares of an array.
//
// gram: y (rows, n), rows y_step floats apart; g (w, w) float64, w = narrow_width(n): the upper
// triangle and some of the lower are written, the columns beyond n are zero. Summed by increasing
// row; products of two float32 are exact, so G is as good as float64 gets for any condition that
// float32 can hold. scratch: gram_scratch(n) float64 of each worker.
// Bytes moved: y once a worker; g once a kGramRows rows.
//
// square_sums: per chunk of kSquareChunk elements, sum x^2 in float64 (infinity or NaN where x has
// one, never from overflow) and max |x|. Bytes moved: x once.
#pragma once

#include "kernels/narrow.h"

namespace edge {

struct GramArgs {
  const float* y = nullptr;
  Index y_step = 0;
  double* g = nullptr;
  double* scratch = nullptr;
  Index rows = 0, n = 0;
};

struct SquareSumsArgs {
  const float* x = nullptr;
  double* sums = nullptr;
  float* peaks = nullptr;
  Index size = 0;
};

constexpr Index kGramRows = 32;
constexpr Index kSquareChunk = 8192;

constexpr Index gram_scratch(Index n) { return kGramRows * narrow_width(n); }
constexpr Index square_chunks(Index size) { return (size + kSquareChunk - 1) / kSquareChunk; }

}  // namespace edge
