// A depthwise convolution (one source and one target channel a group): how planes are padded and
// cut. Shared by the kernels and by the check of a plan, like conv_plan.h.
//
// Every plane of the source is copied into zeros, so that a tap reads whole vectors wherever it
// lies and no border needs a case of its own. A stride along the rows takes the columns apart by
// residue, so that loads have unit stride. The gradient of x is the same correlation with the
// kernel reversed, over d_y with stride - 1 zeros between its elements: the products with these
// zeros cost less than what it would take to leave them out, since both directions wait for memory.
#pragma once

#include "kernels/conv_plan.h"

namespace edge {
namespace depthwise {

using conv_plan::least;
using conv_plan::most;
using conv_plan::round_up;

// Widest vectors, and the floats that a vector may reach behind the last plane.
constexpr Index kMostLanes = 16;
// Packed planes stay in a first-level cache of 32 KiB beside what is read and written.
constexpr Index kBudget = 4 * 1024;

// One spatial dimension. Position p reads, through tap t, place p * step + t * dilation of the
// padded plane. Element r of the source lies at place pad + r * gap, and zeros everywhere else.
struct Axis {
  Index source, outputs, taps, dilation, step, gap, pad;
};

struct Problem {
  Index images, groups;
  Axis v, h;
};

EDGE_STATIC bool takes(const ConvArgs& a) { return a.channels == 1 && a.filters == 1; }

EDGE_STATIC Problem forward_problem(const ConvArgs& a) {
  return {a.images,
          a.groups,
          {a.height, a.out_height, a.kernel_h, a.dilation_h, a.stride_h, 1, a.pad_top},
          {a.width, a.out_width, a.kernel_w, a.dilation_w, a.stride_w, 1, a.pad_left}};
}
// Taps are counted from the kernel's end. A negative pad drops what lies before place 0.
EDGE_STATIC Problem backward_problem(const ConvArgs& a) {
  const Index halo_v = (a.kernel_h - 1) * a.dilation_h, halo_h = (a.kernel_w - 1) * a.dilation_w;
  return {
      a.images,
      a.groups,
      {a.out_height, a.height, a.kernel_h, a.dilation_h, 1, a.stride_h, halo_v - a.pad_top},
      {a.out_width, a.width, a.kernel_w, a.dilation_w, 1, a.stride_w, halo_h - a.pad_left},
  };
}

// Floats of a packed plane: `residues` runs of `pitch` make a row of `row` floats. Run s of a row
// holds places residue(s), residue(s) + step, ...; tap t reads run t % residues.
struct Layout {
  Index residues, pitch, row;
};
EDGE_STATIC Layout layout_of(const Problem& p) {
  const Index residues = least(p.h.taps, conv_plan::residue_period(p.h.step, p.h.dilation));
  const Index pitch = p.h.outputs + (p.h.taps - 1) * p.h.dilation / p.h.step;
  return {residues, pitch, residues * pitch};
}
EDGE_STATIC Index residue(const Axis& a, Index run) { return run * a.dilation % a.step; }
EDGE_STATIC Index tap_offset(const Axis& a, const Layout& l, Index tap) {
  return tap % l.residues * l.pitch + tap * a.dilation / a.step;
}

EDGE_STATIC Index packed_rows(const Axis& v, Index outputs) {
  return (outputs - 1) * v.step + (v.taps - 1) * v.dilation + 1;
}

// `rows` output rows of `planes` planes are packed at a time; several planes only where all rows of
// one fit.
struct Blocks {
  Index rows, planes, plane_floats;
};
EDGE_STATIC Blocks blocks_of(const Problem& p, Index planes) {
  const Index row = layout_of(p).row;
  const Index extra = kBudget / row - packed_rows(p.v, 1);  // packed rows beyond those of one
  const Index rows = least(p.v.outputs, extra <= 0 ? 1 : extra / p.v.step + 1);
  const Index floats = packed_rows(p.v, rows) * row;
  return {rows, rows < p.v.outputs ? 1 : least(planes, most(1, kBudget / floats)), floats};
}

EDGE_STATIC Index packed_floats(const Blocks& b) {
  return round_up(b.planes * b.plane_floats + kMostLanes, 16);
}
EDGE_STATIC Index scratch_floats(const Problem& p) {
  return packed_floats(blocks_of(p, p.images * p.groups));
}
// One vector of sums a tap behind the planes.
EDGE_STATIC Index grad_w_scratch_floats(const Problem& p) {
  return packed_floats(blocks_of(p, p.images)) + p.v.taps * p.h.taps * kMostLanes;
}

}  // namespace depthwise
}  // namespace edge
