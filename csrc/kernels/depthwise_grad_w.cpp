#include "kernels/depthwise.h"
#include "kernels/depthwise_fold.h"
#include "kernels/depthwise_pack.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using depthwise::Blocks;
using depthwise::Layout;
using depthwise::Problem;

// Some rows of d_y of a few images of one channel, and the padded rows of x they meet.
struct Band {
  const Problem* problem;
  Layout layout;
  const float* packed;
  Index planes, plane_floats;  // packed one behind the other
  const float* d_y;            // of the first image
  Index d_y_step, rows;
  float* sums;  // kMostLanes floats a tap, of which a vector is used
};

// A vector of a row of d_y: lanes below `skip`, which the vector before it holds too, become zero,
// and so do those behind a row that is narrower than a vector.
template <class Lanes>
EDGE_INLINE typename Lanes::Floats get_columns(const float* row, std::int32_t skip, Index outputs) {
  using Floats = typename Lanes::Floats;
  using Ints = typename Lanes::Ints;
  Floats values{};
  if (Lanes::count == 4 && outputs < Lanes::count) {
    for (Index j = 0; j < outputs; ++j) values[j] = row[j];
    return values;
  }
  values = get<Floats>(row);
  if (skip == 0) return values;
  Ints lanes;
  for (Index j = 0; j < Lanes::count; ++j) lanes[j] = static_cast<std::int32_t>(j);
  return lanes >= skip ? values : Floats{};
}

// Adds ROWS rows of d_y times x to the sums of UROWS kernel rows; every vector of x is loaded once.
template <class Lanes, int K, int STEP, int UROWS, int ROWS>
EDGE_INLINE void square_tile(const Layout& layout, const float* d_y, Index outputs,
                             std::int32_t skip, const float* at, typename Lanes::Floats* sum) {
  using Floats = typename Lanes::Floats;
  Floats values[ROWS];
  EDGE_UNROLL
  for (int r = 0; r < ROWS; ++r) values[r] = get_columns<Lanes>(d_y + r * outputs, skip, outputs);
  EDGE_UNROLL
  for (int i = 0; i < (ROWS - 1) * STEP + UROWS; ++i, at += layout.row) {
    EDGE_UNROLL
    for (int v = 0; v < K; ++v) {
      const Floats value = get<Floats>(at + v % STEP * layout.pitch + v / STEP);
      EDGE_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        const int u = i - r * STEP;
        if (u >= 0 && u < UROWS) sum[u * K + v] += values[r] * value;
      }
    }
  }
}

// The taps of UROWS kernel rows from row u on, over one vector of columns.
template <class Lanes, int K, int STEP, int UROWS>
EDGE_INLINE void square_rows(const Band& b, Index u, Index column, std::int32_t skip) {
  using Floats = typename Lanes::Floats;
  constexpr int kTileRows = 4;
  const Layout layout = b.layout;
  const Index outputs = b.problem->h.outputs, rows = b.rows;
  float* sums = b.sums + u * K * depthwise::kMostLanes;
  Floats sum[UROWS * K];
  EDGE_UNROLL
  for (int t = 0; t < UROWS * K; ++t) sum[t] = get<Floats>(sums + t * depthwise::kMostLanes);
  for (Index i = 0; i < b.planes; ++i) {
    const float* at = b.packed + i * b.plane_floats + u * layout.row + column;
    const float* d_y = b.d_y + i * b.d_y_step + column;
    Index r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) {
      square_tile<Lanes, K, STEP, UROWS, kTileRows>(layout, d_y, outputs, skip, at, sum);
      at += kTileRows * STEP * layout.row;
      d_y += kTileRows * outputs;
    }
    for (; r < rows; ++r, at += STEP * layout.row, d_y += outputs)
      square_tile<Lanes, K, STEP, UROWS, 1>(layout, d_y, outputs, skip, at, sum);
  }
  EDGE_UNROLL
  for (int t = 0; t < UROWS * K; ++t) put(sums + t * depthwise::kMostLanes, sum[t]);
}

// All sums of a 3 x 3 kernel are in registers, those of a 5 x 5 kernel a row at a time.
template <class Lanes, int K, int STEP>
void square_band(const Band& b) {
  constexpr int kRows = K == 3 ? 3 : 1;
  const Index outputs = b.problem->h.outputs;
  for (Index first = 0; first < outputs; first += Lanes::count) {
    const Index column = larger(0, smaller(first, outputs - Lanes::count));
    const std::int32_t skip = static_cast<std::int32_t>(first - column);
    for (Index u = 0; u < K; u += kRows) square_rows<Lanes, K, STEP, kRows>(b, u, column, skip);
  }
}

template <class Lanes>
void any_band(const Band& b) {
  using Floats = typename Lanes::Floats;
  const Problem& p = *b.problem;
  const Index outputs = p.h.outputs;
  for (Index tap = 0; tap < p.v.taps * p.h.taps; ++tap) {
    const Index offset = tap / p.h.taps * p.v.dilation * b.layout.row +
                         depthwise::tap_offset(p.h, b.layout, tap % p.h.taps);
    Floats sum = get<Floats>(b.sums + tap * depthwise::kMostLanes);
    for (Index i = 0; i < b.planes; ++i) {
      const float* at = b.packed + i * b.plane_floats + offset;
      const float* d_y = b.d_y + i * b.d_y_step;
      for (Index r = 0; r < b.rows; ++r, at += p.v.step * b.layout.row, d_y += outputs) {
        for (Index first = 0; first < outputs; first += Lanes::count) {
          const Index column = larger(0, smaller(first, outputs - Lanes::count));
          const std::int32_t skip = static_cast<std::int32_t>(first - column);
          sum += get_columns<Lanes>(d_y + column, skip, outputs) * get<Floats>(at + column);
        }
      }
    }
    put(b.sums + tap * depthwise::kMostLanes, sum);
  }
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

void add_images(const Problem& p, const ConvArgs& a, Index group, const Worker& worker) {
  const Layout layout = depthwise::layout_of(p);
  const Blocks blocks = depthwise::blocks_of(p, p.images);
  const BandKernel kernel = band_kernel(p);
  float* sums = worker.scratch + depthwise::packed_floats(blocks);
  const Index source = p.v.source * p.h.source, outputs = p.v.outputs * p.h.outputs;
  for (Index image = 0; image < p.images; image += blocks.planes) {
    const Index planes = smaller(blocks.planes, p.images - image);
    for (Index row = 0; row < p.v.outputs; row += blocks.rows) {
      const Index rows = smaller(blocks.rows, p.v.outputs - row);
      const Packing packing = packing_of(p, layout, blocks, row, rows);
      for (Index i = 0; i < planes; ++i) {
        pack_plane(packing, a.x + ((image + i) * p.groups + group) * source,
                   worker.scratch + i * blocks.plane_floats);
      }
      kernel({&p, layout, worker.scratch, planes, blocks.plane_floats,
              a.w + (image * p.groups + group) * outputs + row * p.h.outputs, p.groups * outputs,
              rows, sums});
    }
  }
}

}  // namespace

void depthwise_grad_w(const ConvArgs& a, const Worker& worker) {
  if (folded_grad_w(a, worker)) return;
  const Problem p = depthwise::forward_problem(a);
  const Index packed = depthwise::packed_floats(depthwise::blocks_of(p, p.images));
  const Index taps = p.v.taps * p.h.taps;
  const Share share = share_of(p.groups, worker);
  if (share.begin == share.end) return;
  float* sums = worker.scratch + packed;
  clear(worker.scratch, packed);
  for (Index group = share.begin; group < share.end; ++group) {
    clear(sums, taps * depthwise::kMostLanes);
    add_images(p, a, group, worker);
    for (Index tap = 0; tap < taps; ++tap) {  // lanes beyond the vectors in use are zero
      float sum = 0.0F;
      for (Index j = 0; j < depthwise::kMostLanes; ++j)
        sum += sums[tap * depthwise::kMostLanes + j];
      a.out[group * taps + tap] = sum;
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
