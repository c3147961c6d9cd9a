#include "kernels/gemm.h"

#include "kernels/lanes.h"
#include "kernels/tile.h"

namespace edge {
namespace EDGE_ISA {

namespace {

struct Block {
  Index row, rows, column, columns, k, depth;
  bool first, last;  // of the blocks of k
};

// B[k.., column..] as [depth][kTileColumns], zero beyond the last column, from b (N, K): squares of
// a vector's width are transposed in registers.
void pack_b_transposed(const GemmArgs& g, const Block& block, float* to) {
  const Index depth = block.depth;
  for (Index column = 0; column < kTileColumns; column += kLanes) {
    const float* from = g.b + (block.column + column) * g.k + block.k;
    const Index columns = block.columns - column;
    for (Index k = 0; k < depth; k += kLanes) {
      Vec square[kLanes];
      for (Index j = 0; j < kLanes; ++j)
        square[j] = j < columns ? load_part(from + j * g.k + k, depth - k) : Vec{};
      transpose_square(square);
      for (Index i = 0; i < smaller(kLanes, depth - k); ++i)
        store(to + (k + i) * kTileColumns + column, square[i]);
    }
  }
}

// The same from b (K, N).
void pack_b(const GemmArgs& g, const Block& block, float* to) {
  const Index depth = block.depth, columns = block.columns;
  const float* from = g.b + block.k * g.n + block.column;
  for (Index k = 0; k < depth; ++k) {
    for (Index j = 0; j < columns; ++j) to[k * kTileColumns + j] = from[k * g.n + j];
    for (Index j = columns; j < kTileColumns; ++j) to[k * kTileColumns + j] = 0.0F;
  }
}

// Sums to c. Without a branch in the loop: compilers turn `pointer ? pointer[j] : 0` into masked
// loads, and those are very slow when all lanes of a null pointer are masked off. `floor` is 0 for
// relu, else -infinity; a NaN passes both.
template <bool ADD>
void finish_row(const float* sums, const float* bias, float floor, float* c, Index columns) {
  EDGE_INDEPENDENT
  for (Index j = 0; j < columns; ++j) {
    const float value = (ADD ? c[j] + sums[j] : sums[j]) + bias[j];
    c[j] = value < floor ? floor : value;
  }
}

void finish_rows(const GemmArgs& g, const Block& block, Index row, Index rows, const float* sums) {
  float bias[kTileColumns] = {};
  for (Index j = 0; j < block.columns && block.last && g.bias != nullptr; ++j)
    bias[j] = g.bias[block.column + j];
  const float floor = g.relu && block.last ? 0.0F : -__builtin_inff();
  for (Index i = 0; i < rows; ++i) {
    float* c = g.c + (row + i) * g.n + block.column;
    if (block.first) {
      finish_row<false>(sums + i * kTileColumns, bias, floor, c, block.columns);
    } else {
      finish_row<true>(sums + i * kTileColumns, bias, floor, c, block.columns);
    }
  }
}

void multiply_block(const GemmArgs& g, const Block& block, const float* b, Index b_step) {
  alignas(64) float sums[kTileRows * kTileColumns];
  const Index a_step = g.a_step > 0 ? g.a_step : g.trans_a ? g.m : g.k;
  const Index row_step = g.trans_a ? 1 : a_step;
  const StridedTaps taps{g.trans_a ? a_step : 1, b_step};
  for (Index tile = 0; tile < row_tiles(block.rows); ++tile) {
    const Index row = block.row + row_tile_begin(block.rows, tile);
    const Index rows = block.row + row_tile_begin(block.rows, tile + 1) - row;
    const float* a = g.a + (g.trans_a ? block.k * a_step + row : row * a_step + block.k);
    if (block.columns > kLanes) {
      tile_rows<2>(rows, a, row_step, taps, block.depth, b, sums, kTileColumns);
    } else {
      tile_rows<1>(rows, a, row_step, taps, block.depth, b, sums, kTileColumns);
    }
    finish_rows(g, block, row, rows, sums);
  }
}

}  // namespace

void gemm(const GemmArgs& g, const Worker& worker) {
  const Index tiles = ceil_div(g.n, kTileColumns);
  const Index chunks = ceil_div(g.m, kGemmRows);
  const Index blocks = ceil_div(g.k, kGemmDepth);
  const Share share = share_of(tiles * chunks, worker);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index column = unit / chunks * kTileColumns;
    const Index row = unit % chunks * kGemmRows;
    for (Index i = 0; i < blocks; ++i) {
      const Index k = g.k * i / blocks;
      const Block block{
          row, smaller(kGemmRows, g.m - row), column, smaller(kTileColumns, g.n - column),
          k,   g.k * (i + 1) / blocks - k,    i == 0, i == blocks - 1};
      const bool in_place = !g.trans_b && block.columns == kTileColumns && block.rows <= kTileRows;
      if (g.trans_b) {
        pack_b_transposed(g, block, worker.scratch);
      } else if (!in_place) {
        pack_b(g, block, worker.scratch);
      }
      multiply_block(g, block, in_place ? g.b + k * g.n + column : worker.scratch,
                     in_place ? g.n : kTileColumns);
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
