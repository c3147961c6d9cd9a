// Planes of several channels to vectors of channels, and back. Internal linkage.
#pragma once

#include "kernels/lanes_pack.h"

namespace edge {
namespace EDGE_ISA {

// Channels [first, first + channels) of (images, all_channels, rows, columns).
struct Planes {
  const float* data;
  Index all_channels, rows, columns;
  Index first, channels;
  Index offset(Index image, Index channel) const {
    return (image * all_channels + first + channel) * rows * columns;
  }
};

// A window of a plane; it may reach outside.
struct Band {
  Index row, rows, column, columns;
};

// to[(r * columns + q) * step + lane] = channel + lane of an image at (row + r, column + q), zero
// outside.
__attribute__((unused)) static void pack_band(const Planes& x, Index image, Index channel,
                                              const Band& b, float* to, Index step) {
  const Index top = smaller(larger(-b.row, 0), b.rows);
  const Index left = smaller(larger(-b.column, 0), b.columns);
  const Index bottom = larger(smaller(b.rows, x.rows - b.row), top);
  const Index right = larger(smaller(b.columns, x.columns - b.column), left);
  if (top == bottom || left == right) return zero_vectors(to, b.rows * b.columns, step);
  const Index lanes = smaller(kLanes, x.channels - channel), plane = x.rows * x.columns;
  const float* from =
      x.data + x.offset(image, channel) + (b.row + top) * x.columns + b.column + left;
  const Index behind = b.columns - right, row_step = b.columns * step;
  zero_vectors(to, top * b.columns, step);
  to += top * row_step;
  if (right - left == x.columns) {
    to_lanes(from, plane, lanes, {bottom - top, x.columns, left, left + behind, behind}, to, step);
  } else {
    for (Index r = 0; r < bottom - top; ++r) {
      to_lanes(from + r * x.columns, plane, lanes, {1, right - left, left, 0, behind},
               to + r * row_step, step);
    }
  }
  zero_vectors(to + (bottom - top) * row_step, (b.rows - bottom) * b.columns, step);
}

}  // namespace EDGE_ISA
}  // namespace edge
