// Tiles of planes to their points, and points back to planes. Internal linkage.
#pragma once

#include "kernels/channels_pack.h"
#include "kernels/winograd_lines.h"

namespace edge {
namespace EDGE_ISA {

// Tiles [row, row + rows) x [column, column + columns) of `images` images.
struct TileBlock {
  Index image, images, row, rows, column, columns;
  Index tiles() const { return images * rows * columns; }
};

EDGE_INLINE Index block_count(const winograd::Problem& p, const winograd::Blocks& b) {
  return ceil_div(p.images, b.images) * ceil_div(winograd::tiles(p.v), b.tile_rows) *
         ceil_div(winograd::tiles(p.h), b.tile_columns);
}
EDGE_INLINE TileBlock block_at(const winograd::Problem& p, const winograd::Blocks& b,
                               Index number) {
  const Index rows = winograd::tiles(p.v), columns = winograd::tiles(p.h);
  const Index across = ceil_div(columns, b.tile_columns), down = ceil_div(rows, b.tile_rows);
  const Index column = number % across * b.tile_columns;
  const Index row = number / across % down * b.tile_rows;
  const Index image = number / across / down * b.images;
  return {image,  smaller(b.images, p.images - image),      row, smaller(b.tile_rows, rows - row),
          column, smaller(b.tile_columns, columns - column)};
}

// How a tile reads along an axis: `values` values, `step` from one tile to the next; the first at
// `start`.
struct Reading {
  Index values, step, start;
};

// Where the values of a point lie: [tile][channel].
struct Points {
  float* data;
  Index step, pitch;
};

// The points of a block's tiles: of the source by source_lines, of d_y by filter_lines.
template <class Lines>
static void to_points(const Planes& x, const Reading& v, const Reading& h, const TileBlock& block,
                      Index points_v, Index points_h, Lines lines, float* band, const Points& to) {
  const Index rows = (block.rows - 1) * v.step + v.values;
  const Index columns = (block.columns - 1) * h.step + h.values, pitch = columns * kLanes;
  float* across = band + rows * pitch;
  for (Index n = 0; n < block.images; ++n) {
    for (Index channel = 0; channel < x.channels; channel += kLanes) {
      pack_band(x, block.image + n, channel,
                {v.start + block.row * v.step, rows, h.start + block.column * h.step, columns},
                band, kLanes);
      float* tile = to.data + n * block.rows * block.columns * to.pitch + channel;
      for (Index r = 0; r < block.rows; ++r) {
        lines(v.values, band + r * v.step * pitch, Steps{pitch, kLanes}, across,
              Steps{pitch, kLanes}, columns);
        for (Index q = 0; q < block.columns; ++q, tile += to.pitch) {
          lines(h.values, across + q * h.step * kLanes, Steps{kLanes, pitch}, tile,
                Steps{to.step, points_h * to.step}, points_v);
        }
      }
    }
  }
}

// The points of the source under a block.
__attribute__((unused)) static void source_points(const winograd::Problem& p, const Planes& x,
                                                  const TileBlock& block, float* band,
                                                  const Points& to) {
  const Index points_v = winograd::points(p.v), points_h = winograd::points(p.h);
  to_points(x, {points_v, winograd::outputs_per_tile(p.v), p.v.start},
            {points_h, winograd::outputs_per_tile(p.h), p.h.start}, block, points_v, points_h,
            source_lines, band, to);
}

// sums[(i * out_h + j) * step ...]: the points at `from` of one tile and vector of channels, summed
// back to out_v rows of out_h vectors, `row_step` floats between rows.
EDGE_INLINE void from_points(Index points_h, Index out_v, Index out_h, const float* from,
                             Index point_step, float* to, Index row_step) {
  alignas(64) float lines[5 * winograd::kPoints * kLanes];
  const Index pitch = points_h * kLanes;
  target_lines(out_v, from, Steps{points_h * point_step, point_step}, lines, Steps{pitch, kLanes},
               points_h);
  target_lines(out_h, lines, Steps{kLanes, pitch}, to, Steps{kLanes, row_step}, out_v);
}

}  // namespace EDGE_ISA
}  // namespace edge
