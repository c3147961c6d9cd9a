#include "kernels/pointwise.h"

#include "kernels/pointwise_grid.h"
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
  Grid grid;  // of the source, or of the target where it is scattered
  bool scattered;
  float floor, ceiling;  // of the result, infinite for none
  bool gathered() const { return !scattered && !grid.whole(); }
  Index source_plane() const { return gathered() ? grid.height * grid.width : positions; }
  bool finished() const {
    return bias != nullptr || floor > -__builtin_inff() || ceiling < __builtin_inff();
  }
  Index target_plane() const { return scattered ? grid.height * grid.width : positions; }
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

// The planes of a block's first channel and of a target channel, in one image.
EDGE_INLINE const float* source_of(const Product& p, const Block& b, Index image) {
  return p.source + ((image * p.groups + b.group) * p.depth + b.k) * p.source_plane();
}
EDGE_INLINE float* target_of(const Product& p, const Block& b, Index image, Index row) {
  return p.target + ((image * p.groups + b.group) * p.rows + row) * p.target_plane();
}

// The block's source as [depth][kTileColumns].
void pack(const Product& p, const Block& b, float* to) {
  each_image(p, b, [&](Index image, Index position, Index done, Index count) {
    const float* from = source_of(p, b, image);
    for (Index k = 0; k < b.depth; ++k, from += p.source_plane()) {
      float* line = to + k * kTileColumns + done;
      if (p.gathered()) {
        gather_run(p.grid, from, position, count, line);
      } else {
        copy_run(from + position, count, line);
      }
    }
  });
}

// Sums of a whole tile of one image get their bias and limits on the way to where they belong; a
// NaN stays one.
void finish_tile(const Product& p, const Block& b, Index row, Index rows, const float* sums,
                 float* to) {
  const Vec floor = splat(p.floor), ceiling = splat(p.ceiling);
  for (Index i = 0; i < rows; ++i, to += p.positions, sums += kTileColumns) {
    const Vec bias = splat(p.bias == nullptr ? 0.0F : p.bias[b.group * p.rows + row + i]);
    EDGE_UNROLL
    for (Index j = 0; j < kTileColumns; j += kLanes) {
      const Vec sum = load(sums + j) + bias, above = sum < floor ? floor : sum;
      store(to + j, above > ceiling ? ceiling : above);
    }
  }
}

void clip_run(float* to, float ceiling, Index count) {
  for (Index j = 0; j < count; ++j) to[j] = to[j] > ceiling ? ceiling : to[j];
}

void finish_rows(const Product& p, const Block& b, Index row, Index rows, const float* sums) {
  const bool last = b.k + b.depth == p.depth;
  const float floor = last ? p.floor : -__builtin_inff();
  for (Index i = 0; i < rows; ++i) {
    const float bias = p.bias == nullptr || !last ? 0.0F : p.bias[b.group * p.rows + row + i];
    each_image(p, b, [&](Index image, Index position, Index done, Index count) {
      float* to = target_of(p, b, image, row + i) + (p.scattered ? 0 : position);
      const float* from = sums + i * kTileColumns + done;
      if (p.scattered) {
        scatter_run(p.grid, from, position, count, b.k == 0, to);
      } else if (b.k == 0) {
        finish_run<false>(from, bias, floor, to, count);
      } else {
        finish_run<true>(from, bias, floor, to, count);
      }
      if (last && p.ceiling < __builtin_inff()) clip_run(to, p.ceiling, count);
    });
  }
}

// Rows of an image are often whole pages apart: what several tiles of rows read again would share a
// few sets of the cache, so it is packed.
bool reads_in_place(const Product& p, Index depth) {
  return !p.gathered() && (p.rows <= kTileRows || depth <= kTileRows);
}

void multiply_rows(const Product& p, const Block& b, Index row, Index rows, const float* columns,
                   Index pitch) {
  const Index image = b.first / p.positions, position = b.first % p.positions;
  const float* a = p.weights + b.group * p.rows * p.depth + row * p.row_step + b.k * p.depth_step;
  const StridedTaps taps{p.depth_step, pitch};
  const bool whole = b.count == kTileColumns && position + b.count <= p.positions &&
                     b.depth == p.depth && !p.scattered;
  float* to = target_of(p, b, image, row) + position;
  if (whole && !p.finished())
    return tile_rows<2>(rows, a, p.row_step, taps, b.depth, columns, to, p.positions);
  alignas(64) float sums[kTileRows * kTileColumns];
  if (whole) {
    tile_rows<2>(rows, a, p.row_step, taps, b.depth, columns, sums, kTileColumns);
    return finish_tile(p, b, row, rows, sums, to);
  }
  if (b.count > kLanes) {
    tile_rows<2>(rows, a, p.row_step, taps, b.depth, columns, sums, kTileColumns);
  } else {
    tile_rows<1>(rows, a, p.row_step, taps, b.depth, columns, sums, kTileColumns);
  }
  finish_rows(p, b, row, rows, sums);
}

// `tiles` tiles next to each other; several only where they are read in place, so that rows are
// written in long runs.
void multiply(const Product& p, const Block& first, Index tiles, bool in_place, float* scratch) {
  if (!in_place) pack(p, first, scratch);
  for (Index tile = 0; tile < row_tiles(p.rows); ++tile) {
    const Index row = row_tile_begin(p.rows, tile), rows = row_tile_begin(p.rows, tile + 1) - row;
    Block b = first;
    for (Index i = 0; i < tiles; ++i, b.first += kTileColumns) {
      const float* columns =
          in_place ? source_of(p, b, b.first / p.positions) + b.first % p.positions : scratch;
      multiply_rows(p, b, row, rows, columns, in_place ? p.positions : kTileColumns);
    }
  }
}

// How many of the next tiles lie in one image as a whole.
Index tiles_inside(const Product& p, Index first, Index most) {
  return smaller(most, (p.positions - first % p.positions) / kTileColumns);
}

void multiply_all(const Product& p, const Worker& worker) {
  constexpr Index kRun = 8;  // tiles: a source of kTileRows channels stays in a first-level cache
  const Index columns = p.images * p.positions, tiles = ceil_div(columns, kTileColumns);
  const Index blocks = ceil_div(p.depth, kGemmDepth);
  const Share share = share_of(p.groups * tiles, worker);
  for (Index unit = share.begin, run = 1; unit < share.end; unit += run) {
    const Index group = unit / tiles, first = unit % tiles * kTileColumns;
    const Index rest = smaller(share.end - unit, tiles - unit % tiles);
    const Index inside = tiles_inside(p, first, smaller(kRun, rest));
    const bool in_place = inside > 0 && reads_in_place(p, ceil_div(p.depth, blocks));
    run = in_place ? inside : 1;
    for (Index i = 0; i < blocks; ++i) {
      const Index k = p.depth * i / blocks;
      multiply(
          p,
          {group, first, smaller(kTileColumns, columns - first), k, p.depth * (i + 1) / blocks - k},
          run, in_place, worker.scratch);
    }
  }
}

}  // namespace

void pointwise_conv(const ConvArgs& a, const Worker& worker) {
  multiply_all(
      {a.w, a.channels, 1, a.x, a.bias, a.out, a.images, a.groups, a.filters, a.channels,
       a.out_height * a.out_width, grid_of(a), false, a.relu ? 0.0F : -__builtin_inff(), a.limit},
      worker);
}

void pointwise_grad_x(const ConvArgs& a, const Worker& worker) {
  const Grid grid = grid_of(a);
  multiply_all(
      {a.w, 1, a.channels, a.x, nullptr, a.out, a.images, a.groups, a.channels, a.filters,
       a.out_height * a.out_width, grid, !grid.whole(), -__builtin_inff(), __builtin_inff()},
      worker);
}

}  // namespace EDGE_ISA
}  // namespace edge
