#include "kernels/conv.h"
#include "kernels/conv_lanes_plan.h"
#include "kernels/conv_plan.h"
#include "kernels/conv_rows.h"
#include "kernels/depthwise.h"
#include "kernels/depthwise_plan.h"
#include "kernels/lanes_pack.h"
#include "kernels/pack.h"
#include "kernels/pointwise.h"
#include "kernels/pointwise_plan.h"
#include "kernels/simd.h"
#include "kernels/vertical.h"
#include "kernels/vertical_plan.h"
#include "kernels/winograd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using conv_plan::Blocks;
using conv_plan::Layout;
using conv_plan::Problem;
using conv_plan::Segments;

constexpr int kTileTaps = 4;
#if defined(__AVX512F__)
constexpr int kTileFilters = 6;  // 24 of 32 registers hold sums
#elif defined(__aarch64__)
constexpr int kTileFilters = 4;  // 16 of 32
#else
constexpr int kTileFilters = 3;  // 12 of 16
#endif
// Sums of a tile, and behind them up to whole vectors.
constexpr Index kTileVectors = (kTileFilters * kTileTaps + kLanes - 1) / kLanes * kLanes;
static_assert(kTileFilters <= kGradTileFilters, "scratch is sized for these");

// A worker takes quarters of the taps of a tile of filters: networks start with few filters.
constexpr Index kParts = 4;

// sums[i][j] = sum over the segments of d_y[i] * x at tap j: vector lanes first, then across lanes.
template <int FILTERS, int TAPS>
void dot_tile(const float* d_y, Index d_y_pitch, const float* x, const std::int32_t* taps,
              const Segments& segments, float* sums) {
  Vec sum[FILTERS][TAPS] = {};
  for (Index s = 0; s < segments.count; ++s) {
    const float* rows = d_y + s * segments.length;
    const float* start[TAPS];
    EDGE_UNROLL
    for (int j = 0; j < TAPS; ++j) start[j] = x + s * segments.step + taps[j];
    for (Index f = 0; f < segments.length; f += kLanes) {
      Vec values[TAPS];
      EDGE_UNROLL
      for (int j = 0; j < TAPS; ++j) values[j] = load(start[j] + f);
      EDGE_UNROLL
      for (int i = 0; i < FILTERS; ++i) {
        const Vec row = load(rows + i * d_y_pitch + f);
        EDGE_UNROLL
        for (int j = 0; j < TAPS; ++j) sum[i][j] += row * values[j];
      }
    }
  }
  Vec all[kTileVectors] = {};
  EDGE_UNROLL
  for (int i = 0; i < FILTERS; ++i) {
    EDGE_UNROLL
    for (int j = 0; j < TAPS; ++j) all[i * kTileTaps + j] = sum[i][j];
  }
  for (Index first = 0; first < FILTERS * kTileTaps; first += kLanes)
    store(sums + first, sum_each(all + first));
}

template <int FILTERS>
void dot_taps(Index count, const float* d_y, Index pitch, const float* x, const std::int32_t* taps,
              const Segments& segments, float* sums) {
  switch (count) {
    case 1:
      return dot_tile<FILTERS, 1>(d_y, pitch, x, taps, segments, sums);
    case 2:
      return dot_tile<FILTERS, 2>(d_y, pitch, x, taps, segments, sums);
    case 3:
      return dot_tile<FILTERS, 3>(d_y, pitch, x, taps, segments, sums);
    default:
      return dot_tile<FILTERS, 4>(d_y, pitch, x, taps, segments, sums);
  }
}

void dot(Index filters, Index count, const float* d_y, Index pitch, const float* x,
         const std::int32_t* taps, const Segments& segments, float* sums) {
  switch (filters) {
#define EDGE_DOT_CASE(n) \
  case n:                \
    return dot_taps<(n) <= kTileFilters ? (n) : 1>(count, d_y, pitch, x, taps, segments, sums)
    EDGE_DOT_CASE(1);
    EDGE_DOT_CASE(2);
    EDGE_DOT_CASE(3);
    EDGE_DOT_CASE(4);
    EDGE_DOT_CASE(5);
    EDGE_DOT_CASE(6);
#undef EDGE_DOT_CASE
    default:
      return;
  }
}

// d_y of a few filters with the pitch of the planes and zeros between the rows, one line of
// segments a filter.
void pack_d_y(const ConvArgs& a, const Layout& layout, const Segments& segments,
              const PackRange& range, Index rows, float* to) {
  const Index line = segments.count * segments.length;
  const Index image_step = segments.count == 1 ? layout.image : segments.length;
  const Index outputs = a.out_height * a.out_width;
  for (Index i = 0; i < range.channels * line; ++i) to[i] = 0.0F;
  for (Index i = 0; i < range.channels; ++i) {
    for (Index n = 0; n < range.images; ++n) {
      const float* from =
          a.w + ((range.image + n) * a.groups * a.filters + range.channel + i) * outputs;
      for (Index r = 0; r < rows; ++r) {
        float* row = to + i * line + n * image_step + r * layout.pitch;
        for (Index q = 0; q < a.out_width; ++q) row[q] = from[(range.row + r) * a.out_width + q];
      }
    }
  }
}

struct Block {
  Index group, channel, channels, image, images, row, rows;
  bool first;  // writes d_w, later ones add to it
};

struct Scratch {
  float* planes;
  std::int32_t* taps;
  float* d_y;
};

// The tap tiles [begin, end) of a block that belong to quarters [part, part_end).
void tile_of_filters(const ConvArgs& a, const Block& block, const Segments& segments, Index filter,
                     Index filters, Share parts, const Scratch& scratch) {
  const Index taps = a.kernel_h * a.kernel_w, columns = block.channels * taps;
  const Index tiles = ceil_div(columns, Index{kTileTaps});
  const Index line = segments.count * segments.length;
  for (Index tile = tiles * parts.begin / kParts; tile < tiles * parts.end / kParts; ++tile) {
    alignas(64) float sums[kTileVectors];
    const Index column = tile * kTileTaps, count = smaller(kTileTaps, columns - column);
    dot(filters, count, scratch.d_y, line, scratch.planes, scratch.taps + column, segments, sums);
    for (Index i = 0; i < filters; ++i) {
      float* to = a.out +
                  ((block.group * a.filters + filter + i) * a.channels + block.channel) * taps +
                  column;
      for (Index j = 0; j < count; ++j)
        to[j] = (block.first ? 0.0F : to[j]) + sums[i * kTileTaps + j];
    }
  }
}

// Units are (group, tile of filters, quarter); a worker does the quarters of its share.
template <class Pack>
void work_on_tiles(const ConvArgs& a, const Segments& segments, const Block& block, Share share,
                   const Scratch& scratch, Pack pack) {
  const Index tiles = ceil_div(a.filters, Index{kTileFilters});
  for (Index tile = 0; tile < tiles; ++tile) {
    const Index unit = (block.group * tiles + tile) * kParts;
    const Share parts{larger(share.begin - unit, 0), smaller(share.end - unit, kParts)};
    if (parts.begin >= parts.end) continue;
    const Index filter = a.filters * tile / tiles,
                filters = a.filters * (tile + 1) / tiles - filter;
    pack(block.group * a.filters + filter, filters);
    tile_of_filters(a, block, segments, filter, filters, parts, scratch);
  }
}

void work_on_block(const ConvArgs& a, const Layout& layout, const Problem& p, const Block& block,
                   Share share, const Scratch& scratch) {
  const Segments segments = conv_plan::segments_of(p, layout, block.images, block.rows);
  work_on_tiles(a, segments, block, share, scratch, [&](Index filter, Index filters) {
    pack_d_y(a, layout, segments, {block.image, block.images, filter, filters, block.row},
             block.rows, scratch.d_y);
  });
}

void work_on_channels(const ConvArgs& a, const Problem& p, const Blocks& blocks, Index group,
                      Index channel, Share share, const Scratch& scratch) {
  const Layout layout = conv_plan::layout_of(p, blocks);
  const Index channels = smaller(blocks.channels, a.channels - channel);
  for (Index image = 0; image < p.images; image += blocks.images) {
    const Index images = smaller(blocks.images, p.images - image);
    for (Index row = 0; row < p.v.outputs; row += blocks.rows) {
      const Index rows = smaller(blocks.rows, p.v.outputs - row);
      pack_planes(p, layout, a.x, a.channels * a.groups,
                  {image, images, group * a.channels + channel, channels, row}, scratch.planes);
      work_on_block(a, layout, p,
                    {group, channel, channels, image, images, row, rows, image == 0 && row == 0},
                    share, scratch);
    }
  }
}

void grad_w_planes(const ConvArgs& a, Share share, Index group_units, float* memory) {
  const Problem p = conv_plan::grad_w_problem(a);
  const Blocks blocks = conv_plan::choose_blocks(p);
  const Layout layout = conv_plan::layout_of(p, blocks);
  float* after_planes = memory + layout.source_floats;
  const Scratch scratch{memory, reinterpret_cast<std::int32_t*>(after_planes),
                        after_planes + conv_plan::tap_floats(p, blocks)};
  std::int32_t* tap = scratch.taps;
  for (Index channel = 0; channel < blocks.channels; ++channel) {
    for (Index u = 0; u < a.kernel_h; ++u) {
      for (Index v = 0; v < a.kernel_w; ++v) {
        *tap++ = static_cast<std::int32_t>(tap_offset(p, layout, channel, u, v));
      }
    }
  }
  for (Index group = share.begin / group_units; group * group_units < share.end; ++group) {
    for (Index channel = 0; channel < a.channels; channel += blocks.channels) {
      work_on_channels(a, p, blocks, group, channel, share, scratch);
    }
  }
}

// One part of one group's x, padding written out, one image a lane.
void pack_x_lanes(const ConvArgs& a, const conv_lanes::Problem& p,
                  const conv_lanes::GradLayout& layout, const conv_lanes::Part& part,
                  const Block& block, float* to) {
  const bool columns = conv_lanes::cuts_columns(p);
  const Index plane = a.height * a.width;
  const Index begin = part.source_begin * (columns ? 1 : a.width);
  // Places before the source: the first reached is at -`top` or -`left` of it.
  const Index top = larger(0, -conv_lanes::reach_begin(part.v, 0));
  const Index left = larger(0, -conv_lanes::reach_begin(part.h, 0));
  const bool nothing = part.v.source == 0 || part.h.source == 0;
  const Index used = (top + part.v.source) * layout.pitch;
  const LanesPlane shape{part.v.source, part.h.source, top * layout.pitch + left,
                         layout.pitch - part.h.source,
                         layout.channel - used + layout.pitch - left - part.h.source};
  for (Index channel = 0; channel < a.channels; ++channel) {
    if (nothing) {
      zero_vectors(to + channel * layout.channel * kLanes, layout.channel);
      continue;
    }
    const Index first = (block.image * a.groups + block.group) * a.channels + channel;
    to_lanes(a.x + first * plane + begin, a.groups * a.channels * plane, block.images, shape,
             to + channel * layout.channel * kLanes);
  }
}

void work_on_part(const ConvArgs& a, const conv_lanes::Problem& p,
                  const conv_lanes::GradLayout& layout, const conv_lanes::Part& part,
                  const Block& block, Share share, const Scratch& scratch) {
  const Index positions = part.v.outputs * part.h.outputs, outputs = a.out_height * a.out_width;
  const Index begin = part.positions_begin * (conv_lanes::cuts_columns(p) ? 1 : a.out_width);
  pack_x_lanes(a, p, layout, part, block, scratch.planes);
  const Segments segments{part.v.outputs, part.h.outputs * kLanes,
                          a.stride_h * layout.pitch * kLanes};
  work_on_tiles(a, segments, block, share, scratch, [&](Index filter, Index filters) {
    for (Index i = 0; i < filters; ++i) {
      const Index first = (block.image * a.groups * a.filters + filter + i) * outputs + begin;
      to_lanes(a.w + first, a.groups * a.filters * outputs, block.images, {1, positions, 0, 0, 0},
               scratch.d_y + i * positions * kLanes);
    }
  });
}

void grad_w_lanes(const ConvArgs& a, Index cut, Share share, Index group_units, float* memory) {
  const conv_lanes::Problem p = conv_lanes::forward_problem(a);
  const conv_lanes::GradLayout layout = conv_lanes::grad_layout_of(p, cut);
  float* after_planes = memory + a.channels * layout.channel * kLanes;
  const Index taps = a.channels * a.kernel_h * a.kernel_w;
  const Scratch scratch{memory, reinterpret_cast<std::int32_t*>(after_planes),
                        after_planes + conv_plan::round_up(taps, 16)};
  for (Index tap = 0; tap < taps; ++tap) {
    const Index v = tap % a.kernel_w, u = tap / a.kernel_w % a.kernel_h;
    const Index at = u * a.dilation_h * layout.pitch + v * a.dilation_w;
    scratch.taps[tap] =
        static_cast<std::int32_t>((tap / (a.kernel_h * a.kernel_w) * layout.channel + at) * kLanes);
  }
  const Index outputs = conv_lanes::cut_axis(p).outputs;
  for (Index group = share.begin / group_units; group * group_units < share.end; ++group) {
    for (Index image = 0; image < a.images; image += kLanes) {
      for (Index begin = 0; begin < outputs; begin += cut) {
        const conv_lanes::Part part = conv_lanes::part_of(p, begin, smaller(cut, outputs - begin));
        const Block block{group,
                          0,
                          a.channels,
                          image,
                          smaller(kLanes, a.images - image),
                          0,
                          0,
                          image == 0 && begin == 0};
        work_on_part(a, p, layout, part, block, share, scratch);
      }
    }
  }
}

}  // namespace

void conv_grad_w(const ConvArgs& a, const Worker& worker) {
  if (depthwise::takes(a)) return depthwise_grad_w(a, worker);
  if (pointwise::takes(a)) return pointwise_grad_w(a, worker);
  if (vertical::takes(a)) return vertical_grad_w(a, worker);
  const winograd::Blocks blocks = winograd::grad_w_blocks(a);
  if (blocks.images > 0) return grad_w_winograd(a, blocks, worker);
  const conv_rows::Blocks row_blocks = conv_rows::grad_w_blocks(conv_rows::forward_problem(a));
  if (row_blocks.rows > 0) return grad_w_rows(a, row_blocks, worker);
  const Index group_units = ceil_div(a.filters, Index{kTileFilters}) * kParts;
  const Share share = share_of(a.groups * group_units, worker);
  if (share.begin == share.end) return;
  const Index cut = conv_lanes::fills(a.images, kLanes) ? conv_lanes::grad_w_cut(a) : 0;
  if (cut > 0) {
    grad_w_lanes(a, cut, share, group_units, worker.scratch);
  } else {
    grad_w_planes(a, share, group_units, worker.scratch);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
