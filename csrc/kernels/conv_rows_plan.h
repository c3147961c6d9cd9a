// A convolution with channels side by side: when it is taken, how it is cut, and its scratch.
// Shared by the kernels and by the check of a plan, like conv_plan.h.
//
// A band of rows of the source is packed as [row][column][channel]; a row of target positions is
// then a matrix product whatever the stride is: positions x (tap, channel) times (tap, channel) x
// targets, with nothing computed between rows or beside them. d_x falls apart into phases, one a
// residue of the stride; each reads d_y with a step of 1 and the taps of its residue.
#pragma once

#include "kernels/conv_plan.h"

namespace edge {
namespace conv_rows {

using conv_plan::ceil_ratio;
using conv_plan::least;
using conv_plan::most;
using conv_plan::round_up;

// Channels are padded to whole vectors of the widest instruction set.
constexpr Index kLanesStep = 16;
// Scratch that blocks are cut to fit, in floats (256 KiB).
constexpr Index kBudget = 64 * 1024;
// Positions of a band: enough to read the weights rarely, few enough to stay close.
constexpr Index kMostPositions = 256;
// Fewer targets a block would pack the source too often.
constexpr Index kFewestTargets = 32;

struct Axis {
  Index outputs, source;  // of the target and of what is read
  Index kernel, stride, pad, dilation;
  bool backward;
};

// Target position target_start + p * target_step reads source[origin + p * step + t * tap_step]
// through number first_tap + t * tap_stride of the kernel.
struct Phase {
  Index positions, taps, first_tap, tap_stride;
  Index origin, step, tap_step;
  Index target_start, target_step;
};

EDGE_STATIC Index phases(const Axis& a) { return a.backward ? least(a.stride, a.outputs) : 1; }
EDGE_STATIC Phase phase_of(const Axis& a, Index number) {
  if (!a.backward) return {a.outputs, a.kernel, 0, 1, -a.pad, a.stride, a.dilation, 0, 1};
  const conv_plan::Axis axis =
      conv_plan::backward_axis(a.outputs, a.source, a.kernel, a.stride, a.pad, a.dilation, number);
  if (axis.taps == 0) return {axis.outputs, 0, 0, 1, 0, 1, 0, number, a.stride};
  const Index first = conv_plan::offset(axis, 0);
  return {axis.outputs,
          axis.taps,
          axis.first_tap,
          axis.tap_step,
          axis.start + first,
          1,
          axis.taps > 1 ? conv_plan::offset(axis, 1) - first : 0,
          number,
          a.stride};
}

EDGE_STATIC Index floor_ratio(Index a, Index b) { return a >= 0 ? a / b : -ceil_ratio(-a, b); }

struct Span {
  Index begin, count;
};
// What target positions [begin, begin + count) read.
EDGE_STATIC Span span_of(const Axis& a, Index begin, Index count) {
  const Index reach = (a.kernel - 1) * a.dilation;
  if (!a.backward) return {begin * a.stride - a.pad, (count - 1) * a.stride + reach + 1};
  const Index first = floor_ratio(begin + a.pad - reach, a.stride);
  return {first, floor_ratio(begin + count - 1 + a.pad, a.stride) - first + 1};
}
// The most that any `count` positions read.
EDGE_STATIC Index most_rows(const Axis& a, Index count) {
  const Index reach = (a.kernel - 1) * a.dilation;
  return a.backward ? (count - 1 + reach) / a.stride + 2 : (count - 1) * a.stride + reach + 1;
}

struct Problem {
  Index images, channels, targets;  // source and target channels of one group
  Axis v, h;
};

EDGE_STATIC Problem forward_problem(const ConvArgs& a) {
  return {
      a.images,
      a.channels,
      a.filters,
      {a.out_height, a.height, a.kernel_h, a.stride_h, a.pad_top, a.dilation_h, false},
      {a.out_width, a.width, a.kernel_w, a.stride_w, a.pad_left, a.dilation_w, false},
  };
}
EDGE_STATIC Problem backward_problem(const ConvArgs& a) {
  return {
      a.images,
      a.filters,
      a.channels,
      {a.height, a.out_height, a.kernel_h, a.stride_h, a.pad_top, a.dilation_h, true},
      {a.width, a.out_width, a.kernel_w, a.stride_w, a.pad_left, a.dilation_w, true},
  };
}

// `rows` target rows and `targets` target channels at a time.
struct Blocks {
  Index rows, targets;
};

EDGE_STATIC Index padded(Index channels) { return round_up(channels, kLanesStep); }
EDGE_STATIC Index taps(const Problem& p) { return p.v.kernel * p.h.kernel; }

EDGE_STATIC Index band_floats(const Problem& p, const Blocks& b) {
  return most_rows(p.v, b.rows) * span_of(p.h, 0, p.h.outputs).count * padded(p.channels);
}
EDGE_STATIC Index sums_floats(const Problem& p, const Blocks& b) {
  return b.rows * p.h.outputs * padded(b.targets);
}
// For d_w: of `targets` filters.
EDGE_STATIC Index grad_floats(const Problem& p, const Blocks& b) {
  return b.targets * taps(p) * padded(p.channels);
}
EDGE_STATIC Index weights_floats(const Problem& p, const Blocks& b) {
  return p.channels * taps(p) * padded(b.targets);
}
// Two words a tap; for a vector of weights, its taps.
EDGE_STATIC Index tap_floats(const Problem& p) {
  return round_up(2 * p.channels * taps(p), kLanesStep) + taps(p) * (kLanesStep + 1);
}

EDGE_STATIC Index correlate_floats(const Problem& p, const Blocks& b) {
  return band_floats(p, b) + weights_floats(p, b) + sums_floats(p, b) + tap_floats(p);
}
EDGE_STATIC Index grad_w_floats(const Problem& p, const Blocks& b) {
  return band_floats(p, b) + grad_floats(p, b) + sums_floats(p, b) +
         round_up(2 * b.rows * p.h.outputs, kLanesStep);
}

// The most targets, then the most rows, that fit; no rows where nothing does.
template <class Need>
static Blocks fitting_blocks(const Problem& p, Need need) {
  for (Index parts = 1;; ++parts) {
    Blocks b{1, round_up(ceil_ratio(p.targets, parts), kLanesStep)};
    if (parts > 1 && b.targets < kFewestTargets) return {};
    if (need(p, b) > kBudget) continue;
    const Index limit = least(p.v.outputs, most(1, kMostPositions / p.h.outputs));
    while (b.rows < limit && need(p, {b.rows + 1, b.targets}) <= kBudget) ++b.rows;
    b.rows = ceil_ratio(p.v.outputs, ceil_ratio(p.v.outputs, b.rows));
    return b;
  }
}

// Vectors of channels that are mostly filled, and enough source channels for a product of their
// own.
EDGE_STATIC bool suits(const Problem& p, Index across) {
  constexpr Index kFewestChannels = 8;
  return 4 * across >= 3 * padded(across) && p.channels >= kFewestChannels &&
         (taps(p) > 1 || p.h.backward);
}
// Rows of the source are packed less than twice.
EDGE_STATIC Blocks worth_packing(const Problem& p, const Blocks& b) {
  const Index fresh = p.v.backward ? ceil_ratio(b.rows, p.v.stride) : b.rows * p.v.stride;
  return b.rows == p.v.outputs || most_rows(p.v, b.rows) <= 2 * fresh ? b : Blocks{};
}

// No rows where another way serves better.
EDGE_STATIC Blocks correlate_blocks(const Problem& p) {
  if (!suits(p, p.targets)) return {};
  return worth_packing(p, fitting_blocks(p, correlate_floats));
}
EDGE_STATIC Blocks grad_w_blocks(const Problem& p) {
  if (!suits(p, p.channels)) return {};
  return worth_packing(p, fitting_blocks(p, grad_w_floats));
}

}  // namespace conv_rows
}  // namespace edge
