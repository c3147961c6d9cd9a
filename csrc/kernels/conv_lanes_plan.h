// A convolution with one image a vector lane: when it is taken, how it is cut, and its scratch.
// Shared by the kernels and by the check of a plan, like conv_plan.h.
//
// Many small images waste most of a vector on the padding between their rows. With sixteen images
// side by side every lane counts, whatever the size of an image is, loads are aligned, and taps
// that lie in the padding are left out one by one.
#pragma once

#include "kernels/conv_plan.h"

namespace edge {
namespace conv_lanes {

using conv_plan::ceil_ratio;
using conv_plan::least;
using conv_plan::most;
using conv_plan::round_up;

// Lanes of the widest vectors: parts are cut for them, so that they are alike everywhere.
constexpr Index kMostLanes = 16;
// Neighbouring positions of a row that are computed together.
constexpr Index kPositions = 2;
// A part re-packs the halo around its positions; smaller ones would mostly do that.
constexpr Index kFewestPositions = 4;

// One spatial dimension. Position p reads, through tap t, source[start + p * step + t * tap_step],
// zero outside [0, source). step > 0; tap_step is negative for a gradient.
struct Axis {
  Index outputs, source, taps, start, step, tap_step;
};

struct Range {
  Index begin, end;
};

// The taps of position p inside the source.
EDGE_STATIC Range taps_inside(const Axis& a, Index p) {
  const Index at = a.start + p * a.step;
  Range t{};
  if (a.tap_step > 0) {
    t.begin = at >= 0 ? 0 : ceil_ratio(-at, a.tap_step);
    t.end = at >= a.source ? 0 : ceil_ratio(a.source - at, a.tap_step);
  } else {
    t.begin = at < a.source ? 0 : ceil_ratio(at - a.source + 1, -a.tap_step);
    t.end = at < 0 ? 0 : at / -a.tap_step + 1;
  }
  t.end = least(t.end, a.taps);
  t.begin = least(t.begin, t.end);
  return t;
}

// Places of the source, inside it or not, that `positions` neighbours reach.
EDGE_STATIC Index reach(const Axis& a, Index positions) {
  const Index tap_step = a.tap_step < 0 ? -a.tap_step : a.tap_step;
  return (positions - 1) * a.step + (a.taps - 1) * tap_step + 1;
}
// The first of them for positions from p on.
EDGE_STATIC Index reach_begin(const Axis& a, Index p) {
  return a.start + p * a.step + (a.tap_step < 0 ? (a.taps - 1) * a.tap_step : 0);
}

struct Problem {
  Index images, channels, rows;  // source and target channels of one group
  Axis v, h;
};

EDGE_STATIC Problem forward_problem(const ConvArgs& a) {
  return {
      a.images,
      a.channels,
      a.filters,
      {a.out_height, a.height, a.kernel_h, -a.pad_top, a.stride_h, a.dilation_h},
      {a.out_width, a.width, a.kernel_w, -a.pad_left, a.stride_w, a.dilation_w},
  };
}
// Of strides of 1 alone.
EDGE_STATIC Problem backward_problem(const ConvArgs& a) {
  return {
      a.images,
      a.filters,
      a.channels,
      {a.height, a.out_height, a.kernel_h, a.pad_top, 1, -a.dilation_h},
      {a.width, a.out_width, a.kernel_w, a.pad_left, 1, -a.dilation_w},
  };
}

// Positions are cut along rows, or along columns where one row is all there is: what a part reads
// and writes is one run of memory in each image and channel.
EDGE_STATIC bool cuts_columns(const Problem& p) { return p.v.source == 1 && p.v.outputs == 1; }
EDGE_STATIC const Axis& cut_axis(const Problem& p) { return cuts_columns(p) ? p.h : p.v; }

// `count` positions from `begin` on, and what they read of the source from `from` on.
EDGE_STATIC Axis part_of_axis(const Axis& a, Index begin, Index count, Index& from) {
  const Index first = reach_begin(a, begin);
  from = least(most(first, 0), a.source);
  const Index to = least(most(first + reach(a, count), from), a.source);
  return {count, to - from, a.taps, a.start + begin * a.step - from, a.step, a.tap_step};
}

// A part's positions, the source they read, and the axes counted from there.
struct Part {
  Index positions_begin, source_begin;
  Axis v, h;
};
EDGE_STATIC Part part_of(const Problem& p, Index begin, Index count) {
  Part part{begin, 0, p.v, p.h};
  if (cuts_columns(p)) {
    Index row = 0;  // of one; it may lie in the padding altogether
    part.v = part_of_axis(p.v, 0, 1, row);
    part.h = part_of_axis(p.h, begin, count, part.source_begin);
  } else {
    part.v = part_of_axis(p.v, begin, count, part.source_begin);
  }
  return part;
}

// Vectors of a part of `cut` positions. `gap` zeros stand before every row of the source and after
// the last: what a tap that lies inside for one of two neighbours reads for the other.
struct Layout {
  Index gap, pitch, channel, positions;
};
EDGE_STATIC Layout layout_of(const Problem& p, Index cut) {
  const Index source = least(reach(cut_axis(p), cut), cut_axis(p).source);
  const Index rows = cuts_columns(p) ? 1 : source, columns = cuts_columns(p) ? source : p.h.source;
  const Index gap = (kPositions - 1) * p.h.step, pitch = columns + gap;
  return {gap, pitch, rows * pitch + gap, cut * (cuts_columns(p) ? 1 : p.h.outputs)};
}

EDGE_STATIC Index tap_words(const Problem& p) {
  return round_up(2 * p.channels * p.v.taps * p.h.taps, 16);
}
EDGE_STATIC Index scratch_floats(const Problem& p, Index cut) {
  const Layout l = layout_of(p, cut);
  return (p.channels * l.channel + least(p.rows, kMaxTileRows) * l.positions) * kMostLanes +
         tap_words(p);
}

// For d_w: planes of x with their padding written out, whole as far as the rows of a part go, and a
// tile of d_y.
struct GradLayout {
  Index pitch, channel, positions;
};
EDGE_STATIC GradLayout grad_layout_of(const Problem& p, Index cut) {
  const bool columns = cuts_columns(p);
  const Index pitch = reach(p.h, columns ? cut : p.h.outputs);
  return {pitch, pitch * reach(p.v, columns ? 1 : cut), cut * (columns ? 1 : p.h.outputs)};
}
EDGE_STATIC Index grad_scratch_floats(const Problem& p, Index cut) {
  const GradLayout l = grad_layout_of(p, cut);
  return (p.channels * l.channel + least(p.rows, kGradTileFilters) * l.positions) * kMostLanes +
         round_up(p.channels * p.v.taps * p.h.taps, 16);
}

// Positions a part of `parts`, whole neighbourhoods each.
EDGE_STATIC Index equal_cut(Index outputs, Index parts) {
  return least(outputs, round_up(ceil_ratio(outputs, parts), kPositions));
}

// Positions a part, 0 where no part worth its halo fits the budget. The need grows with the part.
template <class Need>
static Index largest_cut(const Problem& p, Need need) {
  const Index outputs = cut_axis(p).outputs;
  Index low = 0, high = outputs;
  while (low < high) {
    const Index middle = low + (high - low + 1) / 2;
    if (need(p, middle) <= kConvBudget) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  if (low == outputs) return low;
  // Parts of nearly equal size that begin with a first neighbour.
  low -= low % kPositions;
  if (low == 0) return 0;
  const Index even = equal_cut(outputs, ceil_ratio(outputs, low));
  return even >= most(kFewestPositions, reach(cut_axis(p), 1) - 1) ? even : 0;
}

// Three quarters of the lanes must hold an image.
EDGE_STATIC bool fills(Index images, Index lanes) {
  return 4 * images >= 3 * round_up(images, lanes);
}
// The cut, 0 where conv.cpp's planes serve better.
EDGE_STATIC Index forward_cut(const ConvArgs& a) {
  return largest_cut(forward_problem(a), scratch_floats);
}
EDGE_STATIC Index backward_cut(const ConvArgs& a) {
  if (a.stride_h != 1 || a.stride_w != 1) return 0;
  return largest_cut(backward_problem(a), scratch_floats);
}
EDGE_STATIC Index grad_w_cut(const ConvArgs& a) {
  if (a.stride_w != 1) return 0;
  return largest_cut(forward_problem(a), grad_scratch_floats);
}

}  // namespace conv_lanes
}  // namespace edge
