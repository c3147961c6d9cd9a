#include "kernels/tile.h"
#include "kernels/winograd.h"
#include "kernels/winograd_tiles.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using winograd::Blocks;
using winograd::Problem;

// The points of d_y under a block: each tile is a filter.
void target_points(const Problem& p, const Planes& d_y, const TileBlock& block, float* band,
                   const Points& to) {
  const Index out_v = winograd::outputs_per_tile(p.v), out_h = winograd::outputs_per_tile(p.h);
  to_points(d_y, {out_v, out_v, 0}, {out_h, out_h, 0}, block, winograd::points(p.v),
            winograd::points(p.h), filter_lines, band, to);
}

// sums[point][filter][channel] (+)= sum over the tiles of d_y[point][tile][filter] *
// x[point][tile][channel].
template <bool ADD>
void multiply(const Problem& p, Index tiles, Index filters, const Points& d_y, const Points& x,
              const Points& sums) {
  const StridedTaps taps{d_y.pitch, x.pitch};
  for (Index point = 0; point < winograd::points(p); ++point) {
    for (Index channel = 0; channel < p.channels; channel += kTileColumns) {
      const float* b = x.data + point * x.step + channel;
      for (Index tile = 0; tile < row_tiles(filters); ++tile) {
        const Index row = row_tile_begin(filters, tile);
        const Index rows = row_tile_begin(filters, tile + 1) - row;
        const float* a = d_y.data + point * d_y.step + row;
        float* out = sums.data + point * sums.step + row * sums.pitch + channel;
        if (p.channels - channel > kLanes) {
          tile_rows<2, ADD>(rows, a, 1, taps, tiles, b, out, sums.pitch);
        } else {
          tile_rows<1, ADD>(rows, a, 1, taps, tiles, b, out, sums.pitch);
        }
      }
    }
  }
}

// d_w of filters [first, first + count), counted over all groups.
void store_grad(const ConvArgs& a, const Problem& p, Index first, Index count, const Points& sums) {
  const Index taps = a.kernel_h * a.kernel_w, row = a.kernel_w * kLanes;
  alignas(64) float grad[5 * 5 * kLanes];
  for (Index filter = 0; filter < count; ++filter) {
    for (Index channel = 0; channel < p.channels; channel += kLanes) {
      from_points(winograd::points(p.h), a.kernel_h, a.kernel_w,
                  sums.data + filter * sums.pitch + channel, sums.step, grad, row);
      from_lanes(grad, taps, smaller(kLanes, p.channels - channel), Vec{}, -__builtin_inff(),
                 a.out + ((first + filter) * p.channels + channel) * taps, taps);
    }
  }
}

}  // namespace

// A worker takes some of the filters. Products are summed by increasing tile, block by block,
// whoever does it.
void grad_w_winograd(const ConvArgs& a, const Blocks& blocks, const Worker& worker) {
  const Problem p = winograd::forward_problem(a);
  const Index tiles = winograd::tiles(blocks);
  const Index most = smaller(blocks.targets, ceil_div(p.targets, worker.count));
  const Points sums{worker.scratch, winograd::point_step(blocks.targets, p.channels),
                    winograd::padded(p.channels)};
  const Points x{sums.data + winograd::points_floats(p, blocks.targets, p.channels),
                 winograd::point_step(tiles, p.channels), winograd::padded(p.channels)};
  const Points d_y{x.data + winograd::points_floats(p, tiles, p.channels),
                   winograd::point_step(tiles, blocks.targets), winograd::padded(blocks.targets)};
  float* band = d_y.data + winograd::points_floats(p, tiles, blocks.targets);
  const Index parts = ceil_div(p.targets, most), all = block_count(p, blocks);
  const Share share = share_of(a.groups * parts, worker);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index group = unit / parts, target = unit % parts * most;
    const Index first = group * p.targets + target, count = smaller(most, p.targets - target);
    for (Index number = 0; number < all; ++number) {
      const TileBlock block = block_at(p, blocks, number);
      source_points(p,
                    {a.x, a.groups * p.channels, a.height, a.width, group * p.channels, p.channels},
                    block, band, x);
      target_points(p, {a.w, a.groups * p.targets, a.out_height, a.out_width, first, count}, block,
                    band, d_y);
      if (number == 0) {
        multiply<false>(p, block.tiles(), count, d_y, x, sums);
      } else {
        multiply<true>(p, block.tiles(), count, d_y, x, sums);
      }
    }
    store_grad(a, p, first, count, sums);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
