#include "kernels/winograd.h"

#include "kernels/tile.h"
#include "kernels/winograd_tiles.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using winograd::Blocks;
using winograd::Problem;

// The weights of targets [first, first + count) to [point][channel][target].
void weight_points(const WinogradCorrelation& c, Index group, Index first, Index count, float* band,
                   const Points& to) {
  const Problem& p = c.problem;
  const Index kernel_h = p.h.taps, taps = p.v.taps * kernel_h, points_h = winograd::points(p.h);
  const Index sign = c.turned ? -1 : 1;
  const float* start = band + (c.turned ? (taps - 1) * kLanes : 0);
  float* across = band + taps * kLanes;
  const Steps down{sign * kernel_h * kLanes, sign * kLanes}, lines{kernel_h * kLanes, kLanes};
  for (Index target = 0; target < count; target += kLanes) {
    const Index lanes = smaller(kLanes, count - target);
    const float* from = c.weights + group * c.weights_per_group + (first + target) * c.row_step;
    for (Index channel = 0; channel < p.channels; ++channel) {
      to_lanes(from + channel * c.channel_step, c.row_step, lanes, {1, taps, 0, 0, 0}, band);
      filter_lines(p.v.taps, start, down, across, lines, kernel_h);
      filter_lines(kernel_h, across, Steps{kLanes, kernel_h * kLanes},
                   to.data + channel * to.pitch + target, Steps{to.step, points_h * to.step},
                   winograd::points(p.v));
    }
  }
}

// sums[point][tile][target] = sum over the channels of source[point][tile][channel] *
// weights[point][channel][target].
void multiply(const Problem& p, Index tiles, Index targets, const Points& source,
              const Points& weights, const Points& sums) {
  const StridedTaps taps{1, weights.pitch};
  for (Index point = 0; point < winograd::points(p); ++point) {
    for (Index tile = 0; tile < row_tiles(tiles); ++tile) {
      const Index row = row_tile_begin(tiles, tile), rows = row_tile_begin(tiles, tile + 1) - row;
      const float* a = source.data + point * source.step + row * source.pitch;
      float* out = sums.data + point * sums.step + row * sums.pitch;
      for (Index target = 0; target < targets; target += kTileColumns) {
        const float* b = weights.data + point * weights.step + target;
        if (targets - target > kLanes) {
          tile_rows<2>(rows, a, source.pitch, taps, p.channels, b, out + target, sums.pitch);
        } else {
          tile_rows<1>(rows, a, source.pitch, taps, p.channels, b, out + target, sums.pitch);
        }
      }
    }
  }
}

// One image and vector of targets from `band` rows of `pitch` positions to its planes.
void store_band(const WinogradCorrelation& c, const TileBlock& block, Index image, Index channel,
                Index lanes, const float* band) {
  const winograd::Axis &v = c.problem.v, &h = c.problem.h;
  const Index first = block.row * winograd::outputs_per_tile(v);
  const Index left = block.column * winograd::outputs_per_tile(h);
  const Index pitch = block.columns * winograd::outputs_per_tile(h);
  const Index rows = smaller(block.rows * winograd::outputs_per_tile(v), v.outputs - first);
  const Index columns = smaller(pitch, h.outputs - left), plane = v.outputs * h.outputs;
  alignas(64) float bias[kLanes] = {};
  for (Index i = 0; i < lanes && c.bias != nullptr; ++i) bias[i] = c.bias[channel + i];
  const float floor = c.relu ? 0.0F : -__builtin_inff();
  float* to = c.target + (image * c.groups * c.problem.targets + channel) * plane +
              first * h.outputs + left;
  if (pitch == h.outputs) {
    return from_lanes(band, rows * pitch, lanes, load(bias), floor, to, plane);
  }
  for (Index r = 0; r < rows; ++r) {
    from_lanes(band + r * pitch * kLanes, columns, lanes, load(bias), floor, to + r * h.outputs,
               plane);
  }
}

// The sums of a block to targets [first, first + count) of the planes.
void store_sums(const WinogradCorrelation& c, const TileBlock& block, Index first, Index count,
                const Points& sums, float* band) {
  const winograd::Axis &v = c.problem.v, &h = c.problem.h;
  const Index points_h = winograd::points(h), out_v = winograd::outputs_per_tile(v);
  const Index out_h = winograd::outputs_per_tile(h), pitch = block.columns * out_h * kLanes;
  for (Index n = 0; n < block.images; ++n) {
    for (Index target = 0; target < count; target += kLanes) {
      const float* from = sums.data + n * block.rows * block.columns * sums.pitch + target;
      for (Index r = 0; r < block.rows; ++r) {
        for (Index q = 0; q < block.columns; ++q, from += sums.pitch) {
          from_points(points_h, out_v, out_h, from, sums.step,
                      band + r * out_v * pitch + q * out_h * kLanes, pitch);
        }
      }
      store_band(c, block, block.image + n, first + target, smaller(kLanes, count - target), band);
    }
  }
}

}  // namespace

void correlate_winograd(const WinogradCorrelation& c, const Blocks& blocks, const Worker& worker) {
  const Problem& p = c.problem;
  const Index tiles = winograd::tiles(blocks);
  const Points weights{worker.scratch, winograd::point_step(p.channels, blocks.targets),
                       winograd::padded(blocks.targets)};
  const Points source{weights.data + winograd::points_floats(p, p.channels, blocks.targets),
                      winograd::point_step(tiles, p.channels), winograd::padded(p.channels)};
  const Points sums{source.data + winograd::points_floats(p, tiles, p.channels),
                    winograd::point_step(tiles, blocks.targets), winograd::padded(blocks.targets)};
  float* band = sums.data + winograd::points_floats(p, tiles, blocks.targets);
  const Share share = share_of(block_count(p, blocks), worker);
  if (share.begin == share.end) return;
  for (Index group = 0; group < c.groups; ++group) {
    const Planes planes{c.source,   c.groups * p.channels, p.v.source,
                        p.h.source, group * p.channels,    p.channels};
    for (Index target = 0; target < p.targets; target += blocks.targets) {
      const Index count = smaller(blocks.targets, p.targets - target);
      weight_points(c, group, target, count, band, weights);
      for (Index number = share.begin; number < share.end; ++number) {
        const TileBlock block = block_at(p, blocks, number);
        source_points(p, planes, block, band, source);
        multiply(p, block.tiles(), count, source, weights, sums);
        store_sums(c, block, group * p.targets + target, count, sums, band);
      }
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
