#include "kernels/conv_lanes.h"

#include "kernels/lanes.h"
#include "kernels/lanes_pack.h"
#include "kernels/tile.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using conv_lanes::Axis;
using conv_lanes::kPositions;
using conv_lanes::Layout;
using conv_lanes::Part;
using conv_lanes::Problem;
using conv_lanes::Range;

// Taps in the order (row, column, channel), so that what is inside the source stays together.
void fill_taps(const LanesCorrelation& c, const Layout& layout, Tap* taps) {
  const Problem& p = c.problem;
  for (Index u = 0; u < p.v.taps; ++u) {
    for (Index v = 0; v < p.h.taps; ++v) {
      const Index at = u * p.v.tap_step * layout.pitch + v * p.h.tap_step;
      for (Index channel = 0; channel < p.channels; ++channel) {
        *taps++ = {static_cast<std::int32_t>(channel * c.channel_step + u * p.h.taps + v),
                   static_cast<std::int32_t>((channel * layout.channel + at) * kLanes)};
      }
    }
  }
}

// `runs` runs of `length` taps, `step` taps apart.
struct Runs {
  const Tap* taps;
  Index count, length, step;
};

// out[i * pitch + v] = sum over the runs of a[i * row_step + tap.a] * source[at + tap.b], v next to
// each other `step` apart.
template <int ROWS, int VECTORS>
void lanes_tile(const float* a, Index row_step, const Runs& runs, const float* source, Index at,
                Index step, float* out, Index pitch) {
  Vec sum[ROWS][VECTORS] = {};
  for (Index run = 0; run < runs.count; ++run) {
    const Tap* tap = runs.taps + run * runs.step;
    for (const Tap* end = tap + runs.length; tap != end; ++tap) {
      const float* column = a + tap->a_offset;
      const float* row = source + (at + tap->b_offset);
      Vec values[VECTORS];
      EDGE_UNROLL
      for (int v = 0; v < VECTORS; ++v) values[v] = load(row + v * step);
      EDGE_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        const Vec factor = splat((column + (i / 4) * (4 * row_step))[(i % 4) * row_step]);
        EDGE_UNROLL
        for (int v = 0; v < VECTORS; ++v) sum[i][v] += factor * values[v];
      }
    }
  }
  EDGE_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    EDGE_UNROLL
    for (int v = 0; v < VECTORS; ++v) store(out + i * pitch + v * kLanes, sum[i][v]);
  }
}

template <int VECTORS>
void lanes_rows(Index rows, const float* a, Index row_step, const Runs& runs, const float* source,
                Index at, Index step, float* out, Index pitch) {
  switch (rows) {
#define EDGE_LANES_CASE(n)                                                                      \
  case n:                                                                                       \
    return lanes_tile<(n) <= kTileRows ? (n) : 1, VECTORS>(a, row_step, runs, source, at, step, \
                                                           out, pitch)
    EDGE_LANES_CASE(1);
    EDGE_LANES_CASE(2);
    EDGE_LANES_CASE(3);
    EDGE_LANES_CASE(4);
    EDGE_LANES_CASE(5);
    EDGE_LANES_CASE(6);
    EDGE_LANES_CASE(7);
    EDGE_LANES_CASE(8);
    EDGE_LANES_CASE(9);
    EDGE_LANES_CASE(10);
    EDGE_LANES_CASE(11);
    EDGE_LANES_CASE(12);
#undef EDGE_LANES_CASE
    default:
      return;
  }
}

// The taps that lie inside the source for the first or the second of two neighbours; what they read
// for the other lies at most a gap outside.
Range hull(const Range& a, const Range& b) {
  if (a.begin == a.end) return b;
  if (b.begin == b.end) return a;
  return {smaller(a.begin, b.begin), larger(a.end, b.end)};
}

// One row of positions for one tile of target channels.
void lanes_row(const LanesCorrelation& c, const Layout& layout, const Part& part, Index i,
               Index rows, const float* a, const Tap* taps, const float* source, float* out) {
  const Axis& h = part.h;
  const Range v = conv_lanes::taps_inside(part.v, i);
  const Index channels = c.problem.channels, row_taps = h.taps * channels;
  const Index at = (part.v.start + i * part.v.step) * layout.pitch + layout.gap + h.start;
  const Index pitch = part.v.outputs * h.outputs * kLanes;
  for (Index j = 0; j < h.outputs; j += kPositions) {
    const Index count = smaller(kPositions, h.outputs - j);
    const Range inside =
        hull(conv_lanes::taps_inside(h, j), conv_lanes::taps_inside(h, j + count - 1));
    Runs runs{taps + v.begin * row_taps + inside.begin * channels, v.end - v.begin,
              (inside.end - inside.begin) * channels, row_taps};
    if (runs.length == row_taps) runs = {runs.taps, 1, runs.count * row_taps, 0};
    const Index from = (at + j * h.step) * kLanes;
    float* to = out + (i * h.outputs + j) * kLanes;
    if (count == kPositions) {
      lanes_rows<kPositions>(rows, a, c.row_step, runs, source, from, h.step * kLanes, to, pitch);
    } else {
      lanes_rows<1>(rows, a, c.row_step, runs, source, from, 0, to, pitch);
    }
  }
}

struct Unit {
  Index group, image, images;
};

void pack_source(const LanesCorrelation& c, const Layout& layout, const Unit& unit,
                 const Part& part, float* to) {
  const Problem& p = c.problem;
  const Index plane = p.v.source * p.h.source;
  const Index begin = part.source_begin * (conv_lanes::cuts_columns(p) ? 1 : p.h.source);
  const LanesPlane shape{part.v.source, part.h.source, layout.gap, layout.pitch - part.h.source,
                         layout.gap};
  for (Index channel = 0; channel < p.channels; ++channel) {
    const Index first = (unit.image * c.groups + unit.group) * p.channels + channel;
    to_lanes(c.source + first * plane + begin, c.groups * p.channels * plane, unit.images, shape,
             to + channel * layout.channel * kLanes);
  }
}

void multiply_part(const LanesCorrelation& c, const Layout& layout, const Unit& unit,
                   const Part& part, const Tap* taps, const float* source, float* sums) {
  const Problem& p = c.problem;
  const Index positions = part.v.outputs * part.h.outputs, plane = p.v.outputs * p.h.outputs;
  const Index begin = part.positions_begin * (conv_lanes::cuts_columns(p) ? 1 : p.h.outputs);
  const float floor = c.relu ? 0.0F : -__builtin_inff();
  for (Index tile = 0; tile < row_tiles(p.rows); ++tile) {
    const Index row = row_tile_begin(p.rows, tile), rows = row_tile_begin(p.rows, tile + 1) - row;
    const float* a = c.weights + unit.group * c.weights_per_group + row * c.row_step;
    for (Index i = 0; i < part.v.outputs; ++i)
      lanes_row(c, layout, part, i, rows, a, taps, source, sums);
    for (Index i = 0; i < rows; ++i) {
      const Index channel = unit.group * p.rows + row + i;
      from_lanes(sums + i * positions * kLanes, positions, unit.images,
                 splat(c.bias == nullptr ? 0.0F : c.bias[channel]), floor,
                 c.target + (unit.image * c.groups * p.rows + channel) * plane + begin,
                 c.groups * p.rows * plane);
    }
  }
}

}  // namespace

void correlate_lanes(const LanesCorrelation& c, Index most_cut, const Worker& worker) {
  const Problem& p = c.problem;
  const Index outputs = conv_lanes::cut_axis(p).outputs;
  const Index blocks = ceil_div(p.images, kLanes) * c.groups;
  // Something to do for every worker. Where parts end changes no sum.
  const Index cut =
      smaller(most_cut, conv_lanes::equal_cut(outputs, ceil_div(worker.count, blocks)));
  const Layout layout = conv_lanes::layout_of(p, cut);
  float* source = worker.scratch;
  Tap* taps = reinterpret_cast<Tap*>(source + p.channels * layout.channel * kLanes);
  float* sums = source + p.channels * layout.channel * kLanes + conv_lanes::tap_words(p);
  fill_taps(c, layout, taps);
  const Index parts = ceil_div(outputs, cut);
  const Share share = share_of(blocks * parts, worker);
  for (Index number = share.begin; number < share.end; ++number) {
    const Index begin = number % parts * cut, image = number / parts / c.groups * kLanes;
    const Unit unit{number / parts % c.groups, image, smaller(kLanes, p.images - image)};
    const Part part = conv_lanes::part_of(p, begin, smaller(cut, outputs - begin));
    pack_source(c, layout, unit, part, source);
    multiply_part(c, layout, unit, part, taps, source, sums);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
