// When a convolution goes by Winograd's minimal filtering, how it is cut, and its scratch. Shared
// by the kernels and by the check of a plan, like conv_plan.h: integers only, the same on every
// instruction set.
//
// Along each axis a tile of `outputs_per_tile` positions is computed from kPoints values of the
// source instead of outputs_per_tile * taps products: F(4, 3) for three taps, F(2, 5) for five. An
// axis with one tap stays as it is.
#pragma once

#include "kernels/conv_plan.h"

namespace edge {
namespace winograd {

using conv_plan::ceil_ratio;
using conv_plan::least;
using conv_plan::most;
using conv_plan::round_up;

// Values of a line that meet in one tile, whatever the number of taps: the transform of the source
// is one.
constexpr Index kPoints = 6;
// Channels lie side by side, in whole vectors of the widest instruction set.
constexpr Index kLanesStep = 16;
// Behind the values of one point: a step of whole pages would put all points into one set of the
// first-level cache.
constexpr Index kPointGap = 16;
// Scratch that blocks are cut to fit, in floats (640 KiB).
constexpr Index kBudget = 160 * 1024;
// Tiles multiplied at a time; weights are read once for all of them.
constexpr Index kMostTiles = 32;
constexpr Index kFewestTiles = 8;
// Fewer targets a block transform the source too often, unless channels are many.
constexpr Index kFewestTargets = 32;

// Position p reads source[start + p + t] through tap t < taps, zero outside [0, source).
struct Axis {
  Index outputs, source, taps, start;
};

EDGE_STATIC Index points(const Axis& a) { return a.taps == 1 ? 1 : kPoints; }
EDGE_STATIC Index outputs_per_tile(const Axis& a) { return points(a) - a.taps + 1; }
EDGE_STATIC Index tiles(const Axis& a) { return ceil_ratio(a.outputs, outputs_per_tile(a)); }

struct Problem {
  Index images, channels, targets;  // source and target channels of one group
  Axis v, h;
};

EDGE_STATIC Index points(const Problem& p) { return points(p.v) * points(p.h); }

EDGE_STATIC Problem forward_problem(const ConvArgs& a) {
  return {a.images,
          a.channels,
          a.filters,
          {a.out_height, a.height, a.kernel_h, -a.pad_top},
          {a.out_width, a.width, a.kernel_w, -a.pad_left}};
}
// d_x is the correlation of d_y with the kernel turned round.
EDGE_STATIC Problem backward_problem(const ConvArgs& a) {
  return {a.images,
          a.filters,
          a.channels,
          {a.height, a.out_height, a.kernel_h, a.pad_top - a.kernel_h + 1},
          {a.width, a.out_width, a.kernel_w, a.pad_left - a.kernel_w + 1}};
}

// `images` images at a time, or a part of the tiles of one, for `targets` target channels.
struct Blocks {
  Index images, tile_rows, tile_columns, targets;
};
EDGE_STATIC Index tiles(const Blocks& b) { return b.images * b.tile_rows * b.tile_columns; }

// The tiles that one multiplication takes: whole images, whole rows of tiles, or part of a row.
EDGE_STATIC Blocks tile_blocks(const Problem& p, Index most_tiles) {
  const Index rows = tiles(p.v), columns = tiles(p.h);
  if (rows * columns <= most_tiles)
    return {least(p.images, most_tiles / (rows * columns)), rows, columns, 0};
  if (columns <= most_tiles) {
    const Index parts = ceil_ratio(rows, most_tiles / columns);
    return {1, ceil_ratio(rows, parts), columns, 0};
  }
  return {1, 1, ceil_ratio(columns, ceil_ratio(columns, most_tiles)), 0};
}

// Rows or columns of the source under `count` tiles, and of the target.
EDGE_STATIC Index source_span(const Axis& a, Index count) {
  return (count - 1) * outputs_per_tile(a) + points(a);
}
EDGE_STATIC Index target_span(const Axis& a, Index count) { return count * outputs_per_tile(a); }

EDGE_STATIC Index padded(Index channels) { return round_up(channels, kLanesStep); }
// Floats between points, and of the whole, of `rows` rows of `columns` channels.
EDGE_STATIC Index point_step(Index rows, Index columns) {
  return rows * padded(columns) + kPointGap;
}
EDGE_STATIC Index points_floats(const Problem& p, Index rows, Index columns) {
  return points(p) * point_step(rows, columns);
}
// A vector of channels of what lies under a block, its lines transformed along one axis, and the
// taps of a vector of weights.
EDGE_STATIC Index band_floats(const Problem& p, const Blocks& b) {
  const Index rows = source_span(p.v, b.tile_rows), columns = source_span(p.h, b.tile_columns);
  return (rows + kPoints) * columns * kLanesStep;
}
EDGE_STATIC Index weights_floats(const Problem& p) {
  return (p.v.taps + kPoints) * p.h.taps * kLanesStep;
}

EDGE_STATIC Index correlate_floats(const Problem& p, const Blocks& b) {
  return points_floats(p, p.channels, b.targets) + points_floats(p, tiles(b), p.channels) +
         points_floats(p, tiles(b), b.targets) + most(band_floats(p, b), weights_floats(p));
}
EDGE_STATIC Index grad_w_floats(const Problem& p, const Blocks& b) {
  return points_floats(p, b.targets, p.channels) + points_floats(p, tiles(b), p.channels) +
         points_floats(p, tiles(b), b.targets) + band_floats(p, b);
}

// The most tiles, then the most targets but at least `fewest`, that fit the budget; no tiles where
// nothing does.
template <class Need>
static Blocks blocks_of_targets(const Problem& p, Need need, Index fewest) {
  for (Index most_tiles = kMostTiles; most_tiles >= kFewestTiles; most_tiles /= 2) {
    Blocks b = tile_blocks(p, most_tiles);
    for (Index parts = 1;; ++parts) {
      b.targets = round_up(ceil_ratio(p.targets, parts), kLanesStep);
      if (need(p, b) <= kBudget) return b;
      if (b.targets <= fewest) break;
    }
  }
  return {};
}
template <class Need>
static Blocks fitting_blocks(const Problem& p, Need need) {
  const Blocks wide = blocks_of_targets(p, need, kFewestTargets);
  return wide.images > 0 ? wide : blocks_of_targets(p, need, kLanesStep);
}

EDGE_STATIC bool suits(const Axis& a) { return a.taps == 1 || a.taps == 3 || a.taps == 5; }
// Positions computed for each that is wanted, in 1/1024.
EDGE_STATIC Index cover_1024(const Axis& a) {
  return 1024 * tiles(a) * outputs_per_tile(a) / a.outputs;
}

// Whether fewer multiplications clearly outweigh the transforms, in multiply-adds of a vector for
// one tile: a transform costs about as much as `kTransform` of them a point. The source is
// transformed for each block of targets.
EDGE_STATIC bool pays(const Problem& p, const Blocks& b) {
  constexpr Index kTransform = 8;
  const Index sources = ceil_ratio(p.channels, kLanesStep);
  const Index targets = ceil_ratio(p.targets, kLanesStep);
  const Index passes = ceil_ratio(p.targets, b.targets);
  const Index here = points(p) * (p.channels * targets + kTransform * (sources * passes + targets));
  const Index direct = outputs_per_tile(p.v) * outputs_per_tile(p.h) * p.v.taps * p.h.taps *
                       p.channels * p.targets / kLanesStep;
  return here * cover_1024(p.v) / 1024 * cover_1024(p.h) / 1024 < direct / 5 * 4;
}

EDGE_STATIC bool suits(const ConvArgs& a, const Problem& p) {
  constexpr Index kMostChannels = 4096;  // far beyond the budget, and no product overflows
  return a.stride_h == 1 && a.stride_w == 1 && a.dilation_h == 1 && a.dilation_w == 1 &&
         suits(p.v) && suits(p.h) && p.v.taps * p.h.taps > 1 && p.channels <= kMostChannels &&
         p.targets <= kMostChannels;
}

// No tiles where another way serves better.
template <class Need>
static Blocks worthy_blocks(const ConvArgs& a, const Problem& p, Need need) {
  if (!suits(a, p)) return {};
  const Blocks b = fitting_blocks(p, need);
  return b.images > 0 && pays(p, b) ? b : Blocks{};
}
EDGE_STATIC Blocks correlate_blocks(const ConvArgs& a, const Problem& p) {
  return worthy_blocks(a, p, correlate_floats);
}
EDGE_STATIC Blocks grad_w_blocks(const ConvArgs& a) {
  return worthy_blocks(a, forward_problem(a), grad_w_floats);
}

}  // namespace winograd
}  // namespace edge
