// Planes of several images to one image a lane, and back. Internal linkage.
#pragma once

#include "kernels/lanes.h"

namespace edge {
namespace EDGE_ISA {

// A plane of rows, counted in vectors, with zero vectors before, between and behind them.
struct LanesPlane {
  Index rows, columns, before, between, behind;
};
// Below, `step` is the number of floats from one vector to the next.

EDGE_INLINE void zero_vectors(float* to, Index count, Index step = kLanes) {
  for (Index i = 0; i < count; ++i) store(to + i * step, Vec{});
}

// to[(before + r * (columns + between) + q) vectors][image] = from[image * image_step + r * columns
// + q]; lanes beyond `images` are zero.
__attribute__((unused)) static void to_lanes(const float* from, Index image_step, Index images,
                                             const LanesPlane& plane, float* to,
                                             Index step = kLanes) {
  const Index size = plane.rows * plane.columns;
  Index row = 0, column = 0;
  zero_vectors(to, plane.before, step);
  to += plane.before * step;
  for (Index p = 0; p < size; p += kLanes) {
    Vec square[kLanes];
    for (Index image = 0; image < kLanes; ++image) {
      square[image] = image < images ? load_part(from + image * image_step + p, size - p) : Vec{};
    }
    transpose_square(square);
    for (Index i = 0; i < smaller(kLanes, size - p); ++i) {
      store(to, square[i]);
      to += step;
      if (++column < plane.columns) continue;
      const Index zeros = ++row < plane.rows ? plane.between : plane.behind;
      zero_vectors(to, zeros, step);
      to += zeros * step;
      column = 0;
    }
  }
}

// to[image * image_step + p] = max(sums[p vectors][image] + bias, floor); a NaN stays one.
__attribute__((unused)) static void from_lanes(const float* sums, Index positions, Index images,
                                               Vec shift, float floor, float* to, Index image_step,
                                               Index step = kLanes) {
  const Vec least = splat(floor);
  for (Index p = 0; p < positions; p += kLanes) {
    const Index count = smaller(kLanes, positions - p);
    Vec square[kLanes];
    for (Index i = 0; i < kLanes; ++i) {
      const Vec value = i < count ? load(sums + (p + i) * step) + shift : Vec{};
      square[i] = value < least ? least : value;
    }
    transpose_square(square);
    for (Index image = 0; image < images; ++image) {
      float* row = to + image * image_step + p;
      if (count == kLanes) {
        store(row, square[image]);
        continue;
      }
      alignas(64) float part[kLanes];
      store(part, square[image]);
      for (Index i = 0; i < count; ++i) row[i] = part[i];
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
