// How a convolution is cut into blocks that fit the scratch. Shared by the kernels (which are
// compiled once per instruction set) and by the check of a plan, so everything here is `static`:
// integers and no vectors. Sizes were bounded by conv_scratch.cpp (no product below exceeds 2^40
// floats), so plain arithmetic is safe.
#pragma once

#include "kernels/conv.h"

namespace edge {
namespace conv_plan {

#define EDGE_STATIC static inline __attribute__((unused))

EDGE_STATIC Index least(Index a, Index b) { return a < b ? a : b; }
EDGE_STATIC Index most(Index a, Index b) { return a > b ? a : b; }
EDGE_STATIC Index ceil_ratio(Index a, Index b) { return (a + b - 1) / b; }
EDGE_STATIC Index round_up(Index a, Index step) { return ceil_ratio(a, step) * step; }
EDGE_STATIC Index common_divisor(Index a, Index b) {
  while (b != 0) {
    const Index rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// One spatial dimension of a correlation. Output position p reads, through tap t, row p + offset(t)
// of plane plane(t). Row r of plane h holds source[start + residue(h) + r * step], zero outside [0,
// source).
struct Axis {
  Index outputs = 1, source = 1;
  Index step = 1, start = 0, planes = 1;
  Index taps = 1, first_tap = 0,
        tap_step = 1;  // tap t is number first_tap + t * tap_step of the kernel
  Index stride = 1, dilation = 1;
  Index halo = 0;  // largest offset
  bool reversed = false;
  Index target_start = 0, target_step = 1;  // position p lands at target_start + p * target_step
};

EDGE_STATIC Index residue(const Axis& axis, Index plane) {
  return axis.reversed ? 0 : plane * axis.dilation % axis.stride;
}
EDGE_STATIC Index kernel_tap(const Axis& axis, Index t) {
  return axis.first_tap + t * axis.tap_step;
}
EDGE_STATIC Index steps_of(const Axis& axis, Index t) {
  return kernel_tap(axis, t) * axis.dilation / axis.stride;
}
EDGE_STATIC Index offset(const Axis& axis, Index t) {
  return axis.reversed ? steps_of(axis, axis.taps - 1) - steps_of(axis, t) : steps_of(axis, t);
}

// Taps u and u + period fall on the same residue of the stride.
EDGE_STATIC Index residue_period(Index stride, Index dilation) {
  return stride / common_divisor(stride, dilation);
}

EDGE_STATIC Axis forward_axis(Index source, Index outputs, Index taps, Index stride, Index pad,
                              Index dilation) {
  Axis axis;
  axis.outputs = outputs;
  axis.source = source;
  axis.step = stride;
  axis.start = -pad;
  axis.planes = least(taps, residue_period(stride, dilation));
  axis.taps = taps;
  axis.stride = stride;
  axis.dilation = dilation;
  axis.halo = (taps - 1) * dilation / stride;
  return axis;
}

// The part of d_x at coordinates first, first + stride, ...: they all read d_y through the taps of
// one residue. No such tap: taps = 0, and this part of d_x is zero.
EDGE_STATIC Axis backward_axis(Index size, Index outputs, Index taps, Index stride, Index pad,
                               Index dilation, Index first) {
  Axis axis;
  axis.outputs = ceil_ratio(size - first, stride);
  axis.source = outputs;
  axis.stride = stride;
  axis.dilation = dilation;
  axis.reversed = true;
  axis.tap_step = residue_period(stride, dilation);
  axis.target_start = first;
  axis.target_step = stride;
  axis.taps = 0;
  const Index wanted = (first + pad) % stride;
  for (Index tap = 0; tap < least(taps, axis.tap_step); ++tap) {
    if (tap * dilation % stride != wanted) continue;
    axis.first_tap = tap;
    axis.taps = ceil_ratio(taps - tap, axis.tap_step);
    axis.halo = steps_of(axis, axis.taps - 1) - steps_of(axis, 0);
    axis.start = (first + pad) / stride - steps_of(axis, axis.taps - 1);
    break;
  }
  return axis;
}

enum class Mode { correlate, grad_w };

struct Problem {
  Mode mode = Mode::correlate;
  Index images = 1, channels = 1;  // source channels of one group
  Axis v, h;
};

// `images` images, `rows` output rows, `channels` source channels at a time.
struct Blocks {
  Index images = 1, rows = 1, channels = 1;
};

// Floats between rows, images, planes and channels of the packed source.
struct Layout {
  Index pitch, band_rows, image, plane, channel, source_floats;
};

EDGE_STATIC Layout layout_of(const Problem& p, const Blocks& b) {
  Layout l{};
  l.pitch = p.h.outputs + p.h.halo;
  l.band_rows = b.rows + p.v.halo;
  l.image = l.band_rows * l.pitch;
  l.plane = l.image * b.images;
  l.channel = l.plane * p.v.planes * p.h.planes;
  // Vectors read beyond the last plane by less than a tile.
  l.source_floats = round_up(l.channel * b.channels + 2 * kMaxTileColumns, 16);
  return l;
}

// Length of the flattened output of `images` images: from the first position to the last.
EDGE_STATIC Index flat_length(const Problem& p, const Layout& l, Index images, Index rows) {
  return (images - 1) * l.image + (rows - 1) * l.pitch + p.h.outputs;
}

// d_w reads d_y either image by image or as one flat run, whichever pads less.
struct Segments {
  Index count, length, step;
};
EDGE_STATIC Segments segments_of(const Problem& p, const Layout& l, Index images, Index rows) {
  const Index one = round_up(flat_length(p, l, 1, rows), 16);
  const Index flat = round_up(flat_length(p, l, images, rows), 16);
  if (flat <= images * one) return {1, flat, 0};
  return {images, one, l.image};
}

EDGE_STATIC Index output_pitch(const Problem& p, const Blocks& b) {
  return round_up(flat_length(p, layout_of(p, b), b.images, b.rows), kMaxTileColumns);
}
EDGE_STATIC Index tap_floats(const Problem& p, const Blocks& b) {
  const Index words = p.mode == Mode::correlate ? 2 : 1;
  return round_up(words * b.channels * p.v.taps * p.h.taps, 16);
}
EDGE_STATIC Index target_floats(const Problem& p, const Blocks& b) {
  if (p.mode == Mode::correlate) return kMaxTileRows * output_pitch(p, b);
  const Index one = round_up(flat_length(p, layout_of(p, b), 1, b.rows), 16);
  const Index flat = round_up(flat_length(p, layout_of(p, b), b.images, b.rows), 16);
  return kGradTileFilters * least(flat, b.images * one);
}
EDGE_STATIC Index scratch_floats(const Problem& p, const Blocks& b) {
  return layout_of(p, b).source_floats + tap_floats(p, b) + target_floats(p, b);
}

// The largest n in [1, limit] whose blocks fit the budget, 1 where none does. The need grows with
// n.
template <class Set>
static Index largest_that_fits(const Problem& p, Blocks b, Index limit, Set set) {
  Index low = 1, high = limit;
  while (low < high) {
    const Index middle = low + (high - low + 1) / 2;
    set(b, middle);
    if (scratch_floats(p, b) <= kConvBudget) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Share of the computed positions that are wanted, in 1/1024: more images a block fill small
// planes' last tile.
EDGE_STATIC Index fill_1024(const Problem& p, const Blocks& b) {
  return 1024 * b.images * b.rows * p.h.outputs / output_pitch(p, b);
}

EDGE_STATIC Index images_per_block(const Problem& p, const Blocks& b) {
  const auto set = [](Blocks& blocks, Index n) { blocks.images = n; };
  if (b.rows < p.v.outputs || b.channels < p.channels) return 1;
  if (p.mode == Mode::grad_w) return largest_that_fits(p, b, p.images, set);
  const Index limit = largest_that_fits(p, b, most(1, p.images / 4), set);
  Index best = 1;
  for (Index n = 1; n <= limit; n *= 2) {
    if (fill_1024(p, {n, b.rows, b.channels}) > fill_1024(p, {best, b.rows, b.channels})) best = n;
  }
  return best;
}

EDGE_STATIC Blocks choose_blocks(const Problem& p) {
  // Below eight channels a block the output would go through memory too often.
  Blocks b{1, p.v.outputs, least(p.channels, 8)};
  b.rows = largest_that_fits(p, b, p.v.outputs, [](Blocks& blocks, Index n) { blocks.rows = n; });
  b.channels =
      largest_that_fits(p, b, p.channels, [](Blocks& blocks, Index n) { blocks.channels = n; });
  b.images = images_per_block(p, b);
  return b;
}

EDGE_STATIC Problem forward_problem(const ConvArgs& a) {
  return {Mode::correlate, a.images, a.channels,
          forward_axis(a.height, a.out_height, a.kernel_h, a.stride_h, a.pad_top, a.dilation_h),
          forward_axis(a.width, a.out_width, a.kernel_w, a.stride_w, a.pad_left, a.dilation_w)};
}
EDGE_STATIC Problem backward_problem(const ConvArgs& a, Index first_row, Index first_column) {
  return {Mode::correlate, a.images, a.filters,
          backward_axis(a.height, a.out_height, a.kernel_h, a.stride_h, a.pad_top, a.dilation_h,
                        first_row),
          backward_axis(a.width, a.out_width, a.kernel_w, a.stride_w, a.pad_left, a.dilation_w,
                        first_column)};
}
EDGE_STATIC Problem grad_w_problem(const ConvArgs& a) {
  Problem p = forward_problem(a);
  p.mode = Mode::grad_w;
  return p;
}

}  // namespace conv_plan
}  // namespace edge
