// The one matrix product of the device kernels: a block of 256 threads adds a 64 x 64 tile
//
//   sums[i, j] += sum over k < depth of left(i, k) right(j, k)
//
// in float32, by increasing k, with fused multiply-adds. `left` and `right` are functions of (place
// in the tile, k) and give 0 outside of their matrix; each is called once per element. With kAlong
// of an operand consecutive threads ask for consecutive k, otherwise for consecutive places:
// whichever lies side by side in memory. A thread holds 4 x 4 of the sums: rows 4 (thread / 16),
// columns 4 (thread % 16).
#pragma once

#include "cuda/arithmetic.h"

namespace edge::cuda {

constexpr int kTileSide = 64;
constexpr int kTileDepth = 16;
constexpr int kTileThreads = 256;

struct TileSums {
  float at[4][4];
};

struct TileOperands {
  // Columns are padded so that the four stores of a warp's quarter fall on different banks.
  alignas(16) float left[kTileDepth][kTileSide + 4];
  alignas(16) float right[kTileDepth][kTileSide + 4];
};

EDGE_DEVICE int tile_row(int thread) { return thread / 16 * 4; }
EDGE_DEVICE int tile_column(int thread) { return thread % 16 * 4; }

template <bool kAlong, class Operand>
EDGE_DEVICE void stage(float (&to)[kTileDepth][kTileSide + 4], int thread, u64 from, u64 depth,
                       const Operand& operand) {
  EDGE_UNROLL
  for (int part = 0; part < kTileDepth * kTileSide / kTileThreads; ++part) {
    const int element = part * kTileThreads + thread;
    const int k = kAlong ? element % kTileDepth : element / kTileSide;
    const int place = kAlong ? element / kTileDepth : element % kTileSide;
    const u64 at = from + static_cast<u64>(k);
    to[k][place] = at < depth ? operand(place, at) : 0.0F;
  }
}

template <bool kLeftAlong, bool kRightAlong, class Block, class Left, class Right>
EDGE_DEVICE void add_product(Block& block, TileOperands& shared, u64 depth, const Left& left,
                             const Right& right, typename Block::template Private<TileSums>& sums) {
  for (u64 from = 0; from < depth; from += kTileDepth) {
    block.each([&](int thread) {
      stage<kLeftAlong>(shared.left, thread, from, depth, left);
      stage<kRightAlong>(shared.right, thread, from, depth, right);
    });
    block.each([&](int thread) {
      TileSums& own = sums[thread];
      const int row = tile_row(thread);
      const int column = tile_column(thread);
      EDGE_UNROLL
      for (int k = 0; k < kTileDepth; ++k) {
        const Four<float> a = *reinterpret_cast<const Four<float>*>(&shared.left[k][row]);
        const Four<float> b = *reinterpret_cast<const Four<float>*>(&shared.right[k][column]);
        EDGE_UNROLL
        for (int i = 0; i < 4; ++i) {
          EDGE_UNROLL
          for (int j = 0; j < 4; ++j) own.at[i][j] = fused(a.at[i], b.at[j], own.at[i][j]);
        }
      }
    });
  }
}

template <class Block>
EDGE_DEVICE void clear(Block& block, typename Block::template Private<TileSums>& sums) {
  block.each([&](int thread) {
    for (auto& row : sums[thread].at) {
      for (float& sum : row) sum = 0.0F;
    }
  });
}

}  // namespace edge::cuda
