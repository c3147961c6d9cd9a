#include "kernels/conv.h"
#include "kernels/conv_plan.h"
#include "kernels/pack.h"
#include "kernels/simd.h"

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
  for (int i = 0; i < FILTERS; ++i) {
    for (int j = 0; j < TAPS; ++j) sums[i * kTileTaps + j] = sum_lanes(sum[i][j]);
  }
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
    float sums[kTileFilters * kTileTaps];
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
void work_on_block(const ConvArgs& a, const Layout& layout, const Problem& p, const Block& block,
                   Share share, const Scratch& scratch) {
  const Index tiles = ceil_div(a.filters, Index{kTileFilters});
  const Segments segments = conv_plan::segments_of(p, layout, block.images, block.rows);
  for (Index tile = 0; tile < tiles; ++tile) {
    const Index unit = (block.group * tiles + tile) * kParts;
    const Share parts{larger(share.begin - unit, 0), smaller(share.end - unit, kParts)};
    if (parts.begin >= parts.end) continue;
    const Index filter = a.filters * tile / tiles,
                filters = a.filters * (tile + 1) / tiles - filter;
    pack_d_y(a, layout, segments,
             {block.image, block.images, block.group * a.filters + filter, filters, block.row},
             block.rows, scratch.d_y);
    tile_of_filters(a, block, segments, filter, filters, parts, scratch);
  }
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

}  // namespace

void conv_grad_w(const ConvArgs& a, const Worker& worker) {
  const Problem p = conv_plan::grad_w_problem(a);
  const Blocks blocks = conv_plan::choose_blocks(p);
  const Layout layout = conv_plan::layout_of(p, blocks);
  float* after_planes = worker.scratch + layout.source_floats;
  const Scratch scratch{worker.scratch, reinterpret_cast<std::int32_t*>(after_planes),
                        after_planes + conv_plan::tap_floats(p, blocks)};
  std::int32_t* tap = scratch.taps;
  for (Index channel = 0; channel < blocks.channels; ++channel) {
    for (Index u = 0; u < a.kernel_h; ++u) {
      for (Index v = 0; v < a.kernel_w; ++v) {
        *tap++ = static_cast<std::int32_t>(tap_offset(p, layout, channel, u, v));
      }
    }
  }
  const Index group_units = ceil_div(a.filters, Index{kTileFilters}) * kParts;
  const Share share = share_of(a.groups * group_units, worker);
  if (share.begin == share.end) return;
  for (Index group = share.begin / group_units; group * group_units < share.end; ++group) {
    for (Index channel = 0; channel < a.channels; channel += blocks.channels) {
      work_on_channels(a, p, blocks, group, channel, share, scratch);
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
