// The places of a plane that 1 x 1 taps with strides read: together they make a small plane.
// Internal linkage.
#pragma once

#include "kernels/lanes.h"

namespace edge {
namespace EDGE_ISA {

// Position p of the small plane is row p / columns * step_v, column p % columns * step_h of a plane
// of height x width.
struct Grid {
  Index rows, columns, height, width, step_v, step_h;
  bool whole() const { return step_v == 1 && step_h == 1; }
};
EDGE_INLINE Grid grid_of(const ConvArgs& a) {
  return {a.out_height, a.out_width, a.height, a.width, a.stride_h, a.stride_w};
}

// Calls f(row, column, done, count) for the part of positions [position, position + count) in each
// row of the small plane.
template <class F>
EDGE_INLINE void each_grid_row(const Grid& g, Index position, Index count, F f) {
  Index row = position / g.columns, column = position % g.columns;
  for (Index done = 0; done < count; ++row, column = 0) {
    const Index run = smaller(g.columns - column, count - done);
    f(row, column, done, run);
    done += run;
  }
}

// to[i] = the plane at position + i of the small plane.
EDGE_INLINE void gather_run(const Grid& g, const float* plane, Index position, Index count,
                            float* to) {
  each_grid_row(g, position, count, [&](Index row, Index column, Index done, Index run) {
    const float* from = plane + row * g.step_v * g.width + column * g.step_h;
    Index i = 0;
    for (; g.step_h == 2 && i + kLanes <= run && 2 * (column + i + kLanes) <= g.width; i += kLanes)
      store(to + done + i, WidestLanes::even(load(from + 2 * i), load(from + 2 * i + kLanes)));
    for (; i < run; ++i) to[done + i] = from[i * g.step_h];
  });
}

// The reverse: values go to their places, and with `clear` zeros to the places between them and the
// next position, and behind the last of a row and of the plane; without, values are added.
EDGE_INLINE void scatter_run(const Grid& g, const float* from, Index position, Index count,
                             bool clear_between, float* plane) {
  each_grid_row(g, position, count, [&](Index row, Index column, Index done, Index run) {
    float* to = plane + row * g.step_v * g.width;
    if (clear_between) {
      const Index end = row + 1 == g.rows ? g.height : (row + 1) * g.step_v;
      const Index last = column + run == g.columns ? g.width : (column + run) * g.step_h;
      for (Index r = row * g.step_v; r < end; ++r) {
        float* line = plane + r * g.width;
        for (Index i = column * g.step_h; i < last; ++i) line[i] = 0.0F;
      }
    }
    for (Index i = 0; i < run; ++i) to[(column + i) * g.step_h] += from[done + i];
  });
}

}  // namespace EDGE_ISA
}  // namespace edge
