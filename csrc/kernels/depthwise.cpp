#include "kernels/depthwise.h"

#include "kernels/depthwise_fold.h"
#include "kernels/depthwise_pack.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using depthwise::Blocks;
using depthwise::Layout;
using depthwise::Problem;

// A correlation of all planes, and a part of its output rows.
struct Correlation {
  const Problem* problem;
  const float* source;
  const float* w;  // of group g: tap t is w[g * taps + t * w_step]
  Index w_step;
  const float* bias;  // may be null
  float* out;
  bool relu;
};
struct Band {
  Correlation c;
  Layout layout;
  const float* packed;
  Index plane, planes, plane_floats;  // packed one behind the other
  Index row, rows;
};

// One plane of a band, in the order of the output.
struct Plane {
  const float* packed;
  const float* w;
  float bias, floor;
  float* to;
};
EDGE_INLINE Plane plane_of(const Band& b, Index i) {
  const Problem& p = *b.c.problem;
  const Index plane = b.plane + i, group = plane % p.groups;
  return {b.packed + i * b.plane_floats, b.c.w + group * p.v.taps * p.h.taps,
          b.c.bias == nullptr ? 0.0F : b.c.bias[group], b.c.relu ? 0.0F : -__builtin_inff(),
          b.c.out + (plane * p.v.outputs + b.row) * p.h.outputs};
}

// Output rows that share what they load.
constexpr int kTileRows = 4;

// Rows are narrower than the narrowest vectors alone.
template <class Lanes>
EDGE_INLINE void put_sum(float* to, typename Lanes::Floats sum, float floor, Index columns) {
  using Floats = typename Lanes::Floats;
  const Floats value = sum < floor ? floor - Floats{} : sum;
  if constexpr (Lanes::count == 4) {
    for (Index j = 0; j < columns && columns < Lanes::count; ++j) to[j] = value[j];
    if (columns < Lanes::count) return;
  }
  put(to, value);
}

// ROWS outputs of a K x K kernel of dilation 1, each a vector of columns. `row` and `pitch` as in
// Layout.
template <class Lanes, int K, int STEP, int ROWS>
EDGE_INLINE void square_tile(const Plane& plane, const typename Lanes::Floats* w, Index row,
                             Index pitch, const float* at, float* to, Index outputs) {
  using Floats = typename Lanes::Floats;
  Floats sum[ROWS];
  EDGE_UNROLL
  for (int r = 0; r < ROWS; ++r) sum[r] = plane.bias - Floats{};
  // Every vector is loaded once, for all output rows that read it.
  EDGE_UNROLL
  for (int i = 0; i < (ROWS - 1) * STEP + K; ++i, at += row) {
    EDGE_UNROLL
    for (int v = 0; v < K; ++v) {
      const Floats value = get<Floats>(at + v % STEP * pitch + v / STEP);
      EDGE_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        const int u = i - r * STEP;
        if (u >= 0 && u < K) sum[r] += w[u * K + v] * value;
      }
    }
  }
  EDGE_UNROLL
  for (int r = 0; r < ROWS; ++r) put_sum<Lanes>(to + r * outputs, sum[r], plane.floor, outputs);
}

template <class Lanes, int K, int STEP>
void square_band(const Band& b) {
  using Floats = typename Lanes::Floats;
  const Index outputs = b.c.problem->h.outputs, row = b.layout.row, pitch = b.layout.pitch;
  const Index rows = b.rows, planes = b.planes;
  for (Index i = 0; i < planes; ++i) {
    const Plane plane = plane_of(b, i);
    Floats w[K * K];
    EDGE_UNROLL
    for (int t = 0; t < K * K; ++t) w[t] = plane.w[t * b.c.w_step] - Floats{};
    for (Index first = 0; first < outputs; first += Lanes::count) {
      const Index column = larger(0, smaller(first, outputs - Lanes::count));
      const float* at = plane.packed + column;
      float* to = plane.to + column;
      Index r = 0;
      for (; r + kTileRows <= rows; r += kTileRows) {
        square_tile<Lanes, K, STEP, kTileRows>(plane, w, row, pitch, at, to, outputs);
        at += kTileRows * STEP * row;
        to += kTileRows * outputs;
      }
      for (; r < rows; ++r, at += STEP * row, to += outputs)
        square_tile<Lanes, K, STEP, 1>(plane, w, row, pitch, at, to, outputs);
    }
  }
}

// Any kernel: PLACES outputs, `place_step` floats apart in the packed plane and `to_step` in the
// output.
template <class Lanes, int PLACES>
EDGE_INLINE void any_tile(const Band& b, const Plane& plane, const float* at, Index place_step,
                          float* to, Index to_step) {
  using Floats = typename Lanes::Floats;
  const Problem& p = *b.c.problem;
  Floats sum[PLACES];
  EDGE_UNROLL
  for (int i = 0; i < PLACES; ++i) sum[i] = plane.bias - Floats{};
  const float* w = plane.w;
  for (Index u = 0; u < p.v.taps; ++u) {
    for (Index v = 0; v < p.h.taps; ++v, w += b.c.w_step) {
      const float* from =
          at + u * p.v.dilation * b.layout.row + depthwise::tap_offset(p.h, b.layout, v);
      EDGE_UNROLL
      for (int i = 0; i < PLACES; ++i) sum[i] += *w * get<Floats>(from + i * place_step);
    }
  }
  EDGE_UNROLL
  for (int i = 0; i < PLACES; ++i)
    put_sum<Lanes>(to + i * to_step, sum[i], plane.floor, p.h.outputs);
}

template <class Lanes>
void any_plane(const Band& b, const Plane& plane) {
  const Index outputs = b.c.problem->h.outputs, row_step = b.c.problem->v.step * b.layout.row;
  Index row = 0;
  for (; row + kTileRows <= b.rows; row += kTileRows) {
    for (Index first = 0; first < outputs; first += Lanes::count) {
      const Index column = larger(0, smaller(first, outputs - Lanes::count));
      any_tile<Lanes, kTileRows>(b, plane, plane.packed + row * row_step + column, row_step,
                                 plane.to + row * outputs + column, outputs);
    }
  }
  constexpr Index kWide = kTileRows * Lanes::count;  // signals have one row
  for (; row < b.rows; ++row) {
    const float* at = plane.packed + row * row_step;
    float* to = plane.to + row * outputs;
    Index first = 0;
    for (; first + kWide <= outputs; first += kWide)
      any_tile<Lanes, kTileRows>(b, plane, at + first, Lanes::count, to + first, Lanes::count);
    for (; first < outputs; first += Lanes::count) {
      const Index column = larger(0, smaller(first, outputs - Lanes::count));
      any_tile<Lanes, 1>(b, plane, at + column, 0, to + column, 0);
    }
  }
}
template <class Lanes>
void any_band(const Band& b) {
  for (Index i = 0; i < b.planes; ++i) any_plane<Lanes>(b, plane_of(b, i));
}

using BandKernel = void (*)(const Band&);
BandKernel band_kernel(const Problem& p) {
  return with_lanes(p.h.outputs, [&](auto lanes) -> BandKernel {
    using Lanes = decltype(lanes);
    if (is_square<3, 1>(p)) return square_band<Lanes, 3, 1>;
    if (is_square<3, 2>(p)) return square_band<Lanes, 3, 2>;
    if (is_square<5, 1>(p)) return square_band<Lanes, 5, 1>;
    if (is_square<5, 2>(p)) return square_band<Lanes, 5, 2>;
    return any_band<Lanes>;
  });
}

void correlate_planes(const Correlation& c, const Worker& worker) {
  const Problem& p = *c.problem;
  const Layout layout = depthwise::layout_of(p);
  const Blocks blocks = depthwise::blocks_of(p, p.images * p.groups);
  const BandKernel kernel = band_kernel(p);
  const Share share = share_of(p.images * p.groups, worker);
  if (share.begin == share.end) return;
  clear(worker.scratch, depthwise::packed_floats(blocks));
  for (Index plane = share.begin; plane < share.end; plane += blocks.planes) {
    const Index planes = smaller(blocks.planes, share.end - plane);
    for (Index row = 0; row < p.v.outputs; row += blocks.rows) {
      const Index rows = smaller(blocks.rows, p.v.outputs - row);
      const Packing packing = packing_of(p, layout, blocks, row, rows);
      for (Index i = 0; i < planes; ++i) {
        pack_plane(packing, c.source + (plane + i) * p.v.source * p.h.source,
                   worker.scratch + i * blocks.plane_floats);
      }
      kernel({c, layout, worker.scratch, plane, planes, blocks.plane_floats, row, rows});
    }
  }
}

}  // namespace

void depthwise_conv(const ConvArgs& a, const Worker& worker) {
  if (folded_conv(a, worker)) return;
  const Problem p = depthwise::forward_problem(a);
  correlate_planes({&p, a.x, a.w, 1, a.bias, a.out, a.relu}, worker);
}

void depthwise_grad_x(const ConvArgs& a, const Worker& worker) {
  if (folded_grad_x(a, worker)) return;
  const Problem p = depthwise::backward_problem(a);
  const Index last = a.kernel_h * a.kernel_w - 1;
  correlate_planes({&p, a.x, a.w + last, -1, nullptr, a.out, false}, worker);
}

}  // namespace EDGE_ISA
}  // namespace edge
