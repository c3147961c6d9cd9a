#include "kernels/narrow.h"

#include "kernels/gemm.h"
#include "kernels/tile.h"

namespace edge {
namespace EDGE_ISA {

namespace {

struct Slab {
  Index k, depth;
};

template <int VECTORS>
void multiply(const NarrowArgs& g, const Slab& slab, Index row, Index rows, Index column) {
  const float* a = g.a + (g.trans_a ? slab.k * g.a_step + row : row * g.a_step + slab.k);
  const float* b = g.b + slab.k * g.n + column;
  float* c = g.c + row * g.n + column;
  const StridedTaps taps{g.trans_a ? g.a_step : 1, g.n};
  const Index row_step = g.trans_a ? 1 : g.a_step;
  tile_rows<VECTORS, true>(rows, a, row_step, taps, slab.depth, b, c, g.n);
}

}  // namespace

void narrow(const NarrowArgs& g, const Worker& worker) {
  const Share share = share_of(g.m, worker);
  const Index mine = share.end - share.begin;
  const Index blocks = g.trans_a ? 1 : ceil_div(g.k, kNarrowDepth);
  // Every tile adds to c: half the code, at the price of a store.
  for (Index i = share.begin * g.n; !g.add && i < share.end * g.n; ++i) g.c[i] = 0;
  for (Index block = 0; block < blocks; ++block) {
    const Index k = g.k * block / blocks;
    const Slab slab{k, g.k * (block + 1) / blocks - k};
    for (Index tile = 0; tile < row_tiles(mine); ++tile) {
      const Index row = row_tile_begin(mine, tile);
      const Index rows = row_tile_begin(mine, tile + 1) - row;
      Index column = 0;
      for (; column + kTileColumns <= g.n; column += kTileColumns)
        multiply<2>(g, slab, share.begin + row, rows, column);
      if (column < g.n) multiply<1>(g, slab, share.begin + row, rows, column);
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
