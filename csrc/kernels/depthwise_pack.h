// Copies planes into the zero-padded form of depthwise_plan.h. Internal linkage.
#pragma once

#include "kernels/depthwise_plan.h"
#include "kernels/lanes.h"

namespace edge {
namespace EDGE_ISA {

// A kernel of K x K without dilation whose columns are taken apart as unrolled taps expect.
template <int K, int STEP>
EDGE_INLINE bool is_square(const depthwise::Problem& p) {
  return p.v.taps == K && p.h.taps == K && p.v.dilation == 1 && p.h.dilation == 1 &&
         p.v.step == STEP && p.h.step == STEP;
}

// f(lanes) with the widest vectors that a row fills.
template <class F>
EDGE_INLINE auto with_lanes(Index columns, F f) {
#if EDGE_VECTOR_FLOATS >= 16
  if (columns >= 16) return f(Lanes16{});
#endif
#if EDGE_VECTOR_FLOATS >= 8
  if (columns >= 8) return f(Lanes8{});
#endif
  static_cast<void>(columns);
  return f(Lanes4{});
}

EDGE_INLINE void clear(float* to, Index count) {
  for (Index i = 0; i < count; ++i) to[i] = 0.0F;
}

// even[q] = from[2 q], odd[q] = from[2 q + 1] as far as count goes.
template <class Lanes>
EDGE_INLINE Index part_vectors(const float* from, Index count, float* even, float* odd) {
  using Floats = typename Lanes::Floats;
  Index q = 0;
  for (; 2 * (q + Lanes::count) <= count; q += Lanes::count) {
    const Floats low = get<Floats>(from + 2 * q), high = get<Floats>(from + 2 * q + Lanes::count);
    put(even + q, Lanes::even(low, high));
    put(odd + q, Lanes::odd(low, high));
  }
  return q;
}
EDGE_INLINE void part_run(const float* from, Index count, float* even, float* odd) {
  Index q = part_vectors<WidestLanes>(from, count, even, odd);
  q += part_vectors<Lanes4>(from + 2 * q, count - 2 * q, even + q, odd + q);
  for (; 2 * q < count; ++q) {
    even[q] = from[2 * q];
    if (2 * q + 1 < count) odd[q] = from[2 * q + 1];
  }
}

// to[2 q] = from[q] for q < count, zeros between them.
template <class Lanes>
EDGE_INLINE Index spread_vectors(const float* from, Index count, float* to) {
  using Floats = typename Lanes::Floats;
  Index q = 0;
  // The zero behind the last could be the first float of the next row.
  for (; q + Lanes::count < count; q += Lanes::count) {
    const Floats values = get<Floats>(from + q);
    put(to + 2 * q, Lanes::low(values, Floats{}));
    put(to + 2 * q + Lanes::count, Lanes::high(values, Floats{}));
  }
  return q;
}
EDGE_INLINE void spread_run(const float* from, Index count, float* to) {
  Index q = spread_vectors<WidestLanes>(from, count, to);
  q += spread_vectors<Lanes4>(from + q, count - q, to + 2 * q);
  for (; q < count; ++q) to[2 * q] = from[q];
}

// The elements of a source of which element r lies on place pad + r * gap of [0, places).
EDGE_INLINE Share elements_on(const depthwise::Axis& a, Index pad, Index places) {
  const Index begin = smaller(a.source, pad >= 0 ? 0 : ceil_div(-pad, a.gap));
  const Index end = places <= pad ? 0 : ceil_div(places - pad, a.gap);
  return {begin, larger(begin, smaller(a.source, end))};
}

// What the planes of one band have in common: which part of the source lands where.
struct Packing {
  const depthwise::Problem* problem;
  depthwise::Layout layout;
  Share rows, columns;       // of the source
  Index first_row, row_gap;  // floats from the packed plane's start and between rows
  Index first_place;         // of the first column
  Index clear;               // floats of the plane, where zeros have moved since the last band
};
static Packing packing_of(const depthwise::Problem& p, const depthwise::Layout& l,
                          const depthwise::Blocks& blocks, Index row, Index rows) {
  const Index pad = p.v.pad - row * p.v.step;
  const Share inside = elements_on(p.v, pad, depthwise::packed_rows(p.v, rows));
  const Share columns =
      elements_on(p.h, p.h.pad, (p.h.outputs - 1) * p.h.step + (p.h.taps - 1) * p.h.dilation + 1);
  return {&p,
          l,
          inside,
          columns,
          (pad + inside.begin * p.v.gap) * l.row,
          p.v.gap * l.row,
          p.h.pad + columns.begin * p.h.gap,
          blocks.rows < p.v.outputs ? blocks.plane_floats : 0};
}

// Any stride and gap.
EDGE_INLINE void scatter_run(const Packing& k, const float* from, float* to) {
  const depthwise::Axis& h = k.problem->h;
  const Index count = k.columns.end - k.columns.begin;
  if (h.step == 1) {
    for (Index q = 0; q < count; ++q) to[k.first_place + q * h.gap] = from[q];
    return;
  }
  for (Index run = 0; run < k.layout.residues; ++run) {
    const Index start = depthwise::residue(h, run) - k.first_place;  // counted from `from`
    const Index begin = start >= 0 ? 0 : ceil_div(-start, h.step);
    const Index end = start >= count ? 0 : ceil_div(count - start, h.step);
    for (Index q = begin; q < smaller(end, k.layout.pitch); ++q)
      to[run * k.layout.pitch + q] = from[start + q * h.step];
  }
}

// Every row of the source that counts goes to `copy(from, to)`.
template <class Copy>
EDGE_INLINE void each_row(const Packing& k, const float* from, float* to, Copy copy) {
  const Index source = k.problem->h.source, row_gap = k.row_gap;
  for (Index rows = k.rows.end - k.rows.begin; rows > 0; --rows, from += source, to += row_gap)
    copy(from, to);
}

// One plane. Its zeros are there already: scratch is cleared at the start, or here.
static void pack_plane(const Packing& k, const float* source, float* to) {
  const depthwise::Axis& h = k.problem->h;
  const Index count = k.columns.end - k.columns.begin, place = k.first_place;
  clear(to, k.clear);
  if (count == 0) return;
  const float* from = source + k.rows.begin * h.source + k.columns.begin;
  to += k.first_row;
  if (h.step == 1 && h.gap == 1 && count >= 4) {
    with_lanes(count, [&](auto lanes) {
      using Lanes = decltype(lanes);
      each_row(k, from, to + place,
               [=](const float* a, float* b) { copy_vectors<Lanes>(a, count, b); });
    });
  } else if (h.step == 1 && h.gap == 2) {
    each_row(k, from, to + place, [=](const float* a, float* b) { spread_run(a, count, b); });
  } else if (h.step == 2 && k.layout.residues == 2) {  // an odd dilation: run s holds s, s + 2 ...
    const Index pitch = k.layout.pitch, next = place + 1;
    const Index even = place % 2 * pitch + place / 2, odd = next % 2 * pitch + next / 2;
    each_row(k, from, to, [=](const float* a, float* b) { part_run(a, count, b + even, b + odd); });
  } else {
    each_row(k, from, to, [&](const float* a, float* b) { scatter_run(k, a, b); });
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
