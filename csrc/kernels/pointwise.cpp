#include "kernels/pointwise.h"

#include "kernels/lanes.h"
#include "kernels/tile.h"

namespace edge {
namespace EDGE_ISA {

namespace {

// target[n, i] = sum_k weight(i, k) * source[n, k] in each group.
struct Product {
  const float* weights;  // (i, k) of group g: g * rows * depth + i * row_step + k * depth_step
  Index row_step, depth_step;
  const float* source;  // (images, groups * depth, positions)
  const float* bias;    // (groups * rows) or null
  float* target;        // (images, groups * rows, positions)
  Index images, groups, rows, depth, positions;
  bool relu;
};

// Columns [first, first + count) of the images side by side, and a block of the depth.
struct Block {
  Index group, first, count, k, depth;
};

// Calls f(image, position, columns before, columns) for the part of a block in each image.
template <class F>
EDGE_INLINE void each_image(const Product& p, const Block& b, F f) {
  Index image = b.first / p.positions, position = b.first % p.positions;
  for (Index done = 0; done < b.count; ++image, position = 0) {
    const Index count = smaller(p.positions - position, b.count - done);
    f(image, position, done, count);
    done += count;
  }
}

EDGE_INLINE const float* source_of(const Product& p, const Block& b, Index image, Index position) {
  return p.source + ((image * p.groups + b.group) * p.depth + b.k) * p.positions + position;
}
EDGE_INLINE float* target_of(const Product& p, const Block& b, Index image, Index position,
                             Index row) {
  return p.target + ((image * p.groups + b.group) * p.rows + row) * p.positions + position;
}

// The block's source as [depth][kTileColumns].
void pack(const Product& p, const Block& b, float* to) {
  each_image(p, b, [&](Index image, Index position, Index done, Index count) {
    const float* from = source_of(p, b, image, position);
    for (Index k = 0; k < b.depth; ++k)
      copy_run(from + k * p.positions, count, to + k * kTileColumns + done);
  });
}

template <bool ADD>
EDGE_INLINE void finish_run(const float* sums, float bias, float floor, float* to, Index count) {
  EDGE_INDEPENDENT
  for (Index j = 0; j < count; ++j) {
    const float value = (ADD ? to[j] + sums[j] : sums[j]) + bias;
    to[j] = value < floor ? floor : value;
  }
}

void finish_rows(const Product& p, const Block& b, Index row, Index rows, const float* sums) {
  const bool last = b.k + b.depth == p.depth;
  const float floor = p.relu && last ? 0.0F : -__builtin_inff();
  for (Index i = 0; i < rows; ++i) {
    const float bias = p.bias == nullptr || !last ? 0.0F : p.bias[b.group * p.rows + row + i];
    each_image(p, b, [&](Index image, Index position, Index done, Index count) {
      float* to = target_of(p, b, image, position, row + i);
      const float* from = sums + i * kTileColumns + done;
      if (b.k == 0) {
        finish_run<false>(from, bias, floor, to, count);
      } else {
        finish_run<true>(from, bias, floor, to, count);
      }
    });
  }
}

void multiply(const Product& p, const Block& b, float* scratch) {
  const Index image = b.first / p.positions, position = b.first % p.positions;
  const bool inside = b.count == kTileColumns && position + b.count <= p.positions;
  // Rows of an image are often whole pages apart: what several tiles of rows read again would
  // share a few sets of the cache.
  const bool in_place = inside && (p.rows <= kTileRows || b.depth <= kTileRows);
  if (!in_place) pack(p, b, scratch);
  const float* columns = in_place ? source_of(p, b, image, position) : scratch;
  const StridedTaps taps{p.depth_step, in_place ? p.positions : kTileColumns};
  const bool direct = inside && b.depth == p.depth && p.bias == nullptr && !p.relu;
  alignas(64) float sums[kTileRows * kTileColumns];
  for (Index tile = 0; tile < row_tiles(p.rows); ++tile) {
    const Index row = row_tile_begin(p.rows, tile), rows = row_tile_begin(p.rows, tile + 1) - row;
    const float* a = p.weights + b.group * p.rows * p.depth + row * p.row_step + b.k * p.depth_step;
    float* out = direct ? target_of(p, b, image, position, row) : sums;
    const Index pitch = direct ? p.positions : kTileColumns;
    if (b.count > kLanes) {
      tile_rows<2>(rows, a, p.row_step, taps, b.depth, columns, out, pitch);
    } else {
      tile_rows<1>(rows, a, p.row_step, taps, b.depth, columns, out, pitch);
    }
    if (!direct) finish_rows(p, b, row, rows, sums);
  }
}

void multiply_all(const Product& p, const Worker& worker) {
  const Index columns = p.images * p.positions, tiles = ceil_div(columns, kTileColumns);
  const Index blocks = ceil_div(p.depth, kGemmDepth);
  const Share share = share_of(p.groups * tiles, worker);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index first = unit % tiles * kTileColumns;
    for (Index i = 0; i < blocks; ++i) {
      const Index k = p.depth * i / blocks;
      multiply(p,
               {unit / tiles, first, smaller(kTileColumns, columns - first), k,
                p.depth * (i + 1) / blocks - k},
               worker.scratch);
    }
  }
}

}  // namespace

void pointwise_conv(const ConvArgs& a, const Worker& worker) {
  multiply_all({a.w, a.channels, 1, a.x, a.bias, a.out, a.images, a.groups, a.filters, a.channels,
                a.height * a.width, a.relu},
               worker);
}

void pointwise_grad_x(const ConvArgs& a, const Worker& worker) {
  multiply_all({a.w, 1, a.channels, a.x, nullptr, a.out, a.images, a.groups, a.channels, a.filters,
                a.height * a.width, false},
               worker);
}

}  // namespace EDGE_ISA
}  // namespace edge
