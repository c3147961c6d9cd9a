#include "kernels/gram.h"

#include "kernels/doubles.h"

namespace edge {
namespace EDGE_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int kBand = 8;  // 16 of 32 registers hold sums
#else
constexpr int kBand = 4;  // 8 of 16
#endif
constexpr Index kTileDoubles = 2 * kDoubles;
typedef float HalfVec __attribute__((vector_size(EDGE_VECTOR_FLOATS * 2)));
typedef float UnalignedHalfVec
    __attribute__((vector_size(EDGE_VECTOR_FLOATS * 2), aligned(4), may_alias));

// Rows of y as float64, zero beyond the last column and the last row.
void widen(const GramArgs& args, Index row, Index width, double* to) {
  for (Index i = 0; i < kGramRows; ++i, to += width) {
    const Index columns = row + i < args.rows ? args.n : 0;
    const float* from = args.y + (row + i) * args.y_step;
    Index j = 0;
    for (; j + kDoubles <= columns; j += kDoubles) {
      const HalfVec values = *reinterpret_cast<const UnalignedHalfVec*>(from + j);
      store(to + j, __builtin_convertvector(values, DoubleVec));
    }
    for (; j < columns; ++j) to[j] = static_cast<double>(from[j]);
    for (; j < width; ++j) to[j] = 0;
  }
}

// g[i, j] += sum_row y[row, i] y[row, j] of a band of i and two vectors of j.
void add_tile(const double* y, Index width, Index i, Index j, double* g) {
  DoubleVec sums[kBand][2];
  EDGE_UNROLL
  for (int b = 0; b < kBand; ++b) {
    sums[b][0] = load(g + (i + b) * width + j);
    sums[b][1] = load(g + (i + b) * width + j + kDoubles);
  }
  for (Index row = 0; row < kGramRows; ++row, y += width) {
    const DoubleVec first = load(y + j), second = load(y + j + kDoubles);
    EDGE_UNROLL
    for (int b = 0; b < kBand; ++b) {
      sums[b][0] += y[i + b] * first;
      sums[b][1] += y[i + b] * second;
    }
  }
  EDGE_UNROLL
  for (int b = 0; b < kBand; ++b) {
    store(g + (i + b) * width + j, sums[b][0]);
    store(g + (i + b) * width + j + kDoubles, sums[b][1]);
  }
}

}  // namespace

// Bands of g are dealt out in turns, because those further down have less above the diagonal.
void gram(const GramArgs& args, const Worker& worker) {
  const Index width = narrow_width(args.n);
  double* y = args.scratch + worker.index * gram_scratch(args.n);
  const Index first = worker.index * kBand, step = worker.count * kBand;
  for (Index i = first; i < width; i += step)
    for (Index at = i * width; at < (i + kBand) * width; ++at) args.g[at] = 0;
  for (Index row = 0; row < args.rows; row += kGramRows) {
    widen(args, row, width, y);
    for (Index i = first; i < width; i += step) {
      for (Index j = i / kTileDoubles * kTileDoubles; j < width; j += kTileDoubles)
        add_tile(y, width, i, j, args.g);
    }
  }
}

void square_sums(const SquareSumsArgs& args, const Worker& worker) {
  const Share share = share_of(square_chunks(args.size), worker);
  for (Index chunk = share.begin; chunk < share.end; ++chunk) {
    const float* x = args.x + chunk * kSquareChunk;
    const Index size = smaller(kSquareChunk, args.size - chunk * kSquareChunk);
    DoubleVec sums[4] = {};
    Vec peaks[2] = {};
    Index i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
      EDGE_UNROLL
      for (int v = 0; v < 4; ++v) {
        const HalfVec half = *reinterpret_cast<const UnalignedHalfVec*>(x + i + v * kDoubles);
        const DoubleVec value = __builtin_convertvector(half, DoubleVec);
        sums[v] += value * value;
      }
      EDGE_UNROLL
      for (int v = 0; v < 2; ++v) {
        const Vec value = load(x + i + v * kLanes);
        const Vec magnitude = value < 0.0F ? -value : value;
        peaks[v] = magnitude > peaks[v] ? magnitude : peaks[v];
      }
    }
    double sum = 0;
    float peak = 0;
    double lanes[EDGE_VECTOR_FLOATS / 2];
    store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (Index lane = 0; lane < kDoubles; ++lane) sum += lanes[lane];
    float highest[EDGE_VECTOR_FLOATS];
    store(highest, peaks[0] > peaks[1] ? peaks[0] : peaks[1]);
    for (Index lane = 0; lane < kLanes; ++lane) peak = highest[lane] > peak ? highest[lane] : peak;
    for (; i < size; ++i) {
      sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      const float magnitude = __builtin_fabsf(x[i]);
      peak = magnitude > peak ? magnitude : peak;
    }
    args.sums[chunk] = sum;
    args.peaks[chunk] = peak;
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
