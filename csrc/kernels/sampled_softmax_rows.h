// Class rows on their way in and out of sampled_softmax. Internal linkage.
#pragma once

#include "kernels/lanes.h"
#include "kernels/sampled_softmax.h"
#include "kernels/tile.h"

namespace edge {
namespace EDGE_ISA {

constexpr Index kPanelVectors = kTileColumns / kLanes;
constexpr Index kManyFloats = 512 * 1024;  // of rows: more than a second-level cache has
constexpr Index kAheadFloats = 2048;       // 8 KiB, in a first-level cache of 32

// `length` is a multiple of the vector.
EDGE_INLINE float dot_of(const float* a, const float* b, Index length) {
  Vec sum = {};
  for (Index k = 0; k < length; k += kLanes) sum += load(a + k) * load(b + k);
  return sum_lanes(sum);
}

// 1 / |v|; 0 for a vector too short to have a direction, NaN where its square sum is none.
EDGE_INLINE float inverse_length(const float* v, Index length) {
  const float square = dot_of(v, v, length);
  if (square < 1e-38F) return 0.0F;
  return square < __builtin_inff() ? 1.0F / __builtin_sqrtf(square) : __builtin_nanf("");
}

// The gradient of u = v / |v| becomes that of v, times what `factor` is over 1 / |v|:
// d <- factor (d - u (u . d)), where `axis` is u over the root of `square`. Both are zero behind
// `length` up to a whole vector.
EDGE_INLINE void across(float* d, const float* axis, Index length, float factor, float square) {
  const float along = square * dot_of(d, axis, ceil_div(length, kLanes) * kLanes);
  EDGE_INDEPENDENT
  for (Index k = 0; k < length; ++k) d[k] = factor * (d[k] - axis[k] * along);
}

EDGE_INLINE const float* row_of(const SampledSoftmaxArgs& args, Index j) {
  return args.rows + (args.classes == nullptr ? j : Index{args.classes[j]}) * args.width;
}

// Rows lie anywhere in a table that no cache holds, so their lines are asked for ahead of use.
EDGE_INLINE void ask_for(const SampledSoftmaxArgs& args, Index j) {
  if (j >= args.count) return;
  const float* row = row_of(args, j);
  for (Index k = 0; k < args.width; k += 16) __builtin_prefetch(row + k);
}

// A negative that hit a positive's row, which another worker may be moving.
EDGE_INLINE bool left_out(const SampledSoftmaxArgs& args, Index j) {
  return j >= args.positives && args.correction != nullptr &&
         args.correction[j] == -__builtin_inff();
}

// Rows begin .. begin + count as (count, width_pitch), zeros behind each and where one is left out;
// for cosines they are s w / |w|, and factors, where wanted, s / |w|.
static void gather_rows(const SampledSoftmaxArgs& args, Index begin, Index count, float* to,
                        float* factors) {
  const Index width = args.width, pitch = args.layout.width_pitch;
  const Index ahead = 1 + kAheadFloats / width;
  for (Index r = 0; r < count; ++r) {
    float* row = to + r * pitch;
    ask_for(args, begin + r + ahead);
    const Index filled = left_out(args, begin + r) ? 0 : width;
    if (filled != 0) copy_run(row_of(args, begin + r), width, row);
    for (Index k = filled; k < pitch; ++k) row[k] = 0.0F;
    if (args.scale == 0.0F) continue;
    const float factor = args.scale * inverse_length(row, pitch);
    for (Index k = 0; k < pitch; ++k) row[k] *= factor;
    if (factors != nullptr) factors[r] = factor;
  }
}

// A row's gradient is written, or moves the row from column `begin` on; what was left out may be
// another class's row.
EDGE_INLINE void finish_row(const SampledSoftmaxArgs& args, Index j, const float* gradient,
                            Index begin) {
  if (args.d_rows != nullptr) {
    copy_run(gradient, args.width, args.d_rows + j * args.width);
  }
  if (args.updated != nullptr && !left_out(args, j)) {
    float* to = args.updated + (row_of(args, j) - args.rows);
    const Index whole = args.width - args.width % kLanes;
    for (Index k = begin; k < whole; k += kLanes)
      store(to + k, load(to + k) - args.lr * load(gradient + k));
    for (Index k = larger(begin, whole); k < args.width; ++k) to[k] -= args.lr * gradient[k];
  }
}

// Whether a tile of classes moves its rows from registers: the tiles that nearly all classes are
// in.
static bool moves_directly(const SampledSoftmaxArgs& args, Index begin, Index count) {
  if (args.updated == nullptr || args.d_rows != nullptr || args.scale != 0.0F) return false;
  for (Index j = begin; j < begin + count; ++j)
    if (left_out(args, j)) return false;
  return count == kTileRows || count == kTileRows - 1;
}

// The next tile's rows are asked for piece by piece where the second cache holds them no longer:
// all lines at once would fill the queue of misses, and lines that are there displace others.
EDGE_INLINE void ask_for_next(const SampledSoftmaxArgs& args, Index begin, Index count, Index k) {
  if (args.count * args.width < kManyFloats) return;
  const Index end = smaller(args.count, begin + 2 * count);
  for (Index j = begin + count; j < end; ++j) {
    const float* row = row_of(args, j) + k;
    for (Index i = 0; i < kTileColumns; i += 16) __builtin_prefetch(row + i, 1);
  }
}

// w_j -= lr d_w_j for ROWS classes and a tile's columns.
template <int ROWS>
static void move_tile(const SampledSoftmaxArgs& args, Index j, const float* g,
                      const float* features, Index k) {
  Vec sum[ROWS][kPanelVectors] = {};
  add_products<ROWS, kPanelVectors>(g, args.layout.batch_pitch, StridedTaps{1, kTileColumns},
                                    args.batch, features, sum);
  EDGE_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    float* row = args.updated + (row_of(args, j + i) - args.rows) + k;
    EDGE_UNROLL
    for (Index v = 0; v < kPanelVectors; ++v)
      store(row + v * kLanes, load(row + v * kLanes) - args.lr * sum[i][v]);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
