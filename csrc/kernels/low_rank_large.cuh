// What low_rank.cuh does with whole matrices: their scale and energy, a random start, products with
// A.
#pragma once

#include "cuda/product.cuh"

namespace edge::cuda::low_rank {

constexpr int kThreads = kTileThreads;
constexpr u64 kMostRank = 120;
constexpr int kMostWidth = 128;
constexpr int kSweeps = 14;
constexpr u64 kGramParts = 32;
constexpr u64 kApplyRows = 16;
// What rounding to float32 leaves of a dependent column's square is about 1e-15.
constexpr double kDependent = 1e-13;

struct State {
  u32 not_peak;  // ~ bits of max |a|: a minimum
  u32 first_bad;
  u32 done;
  u32 unused;
  double energy;   // ||A||^2, scaled
  double missing;  // of it, at the last look
};

struct Matrix {
  const float* a;  // (m, n)
  u64 m, n;
  u64 width;  // p
  u64 splits;
  State* state;
  float* parts;         // (splits, max(m, n), p)
  double* squares;      // one a block of AddParts or SquareSum
  double* grams;        // (kGramParts, p, p)
  double* factor;       // (p, p)
  double* transform;    // (p, p)
  double* transform_v;  // (p, p)
};

EDGE_DEVICE float scale_of(const State& state) {
  const u32 peak = ~state.not_peak;
  const u32 exponent = peak >> 23U;
  const u32 biased = exponent >= 253 ? 1 : exponent == 0 ? 253 : 254 - exponent;
  return peak == 0 ? 1.0F : float_of(biased << 23U);
}

struct Peak {
  static constexpr int kThreads = low_rank::kThreads;
  using Args = Matrix;
  struct Shared {
    u32 unused;
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared&, const Args& it) {
    block.each([&](int thread) {
      u32 peak = 0;
      const u64 step = static_cast<u64>(block.blocks()) * kThreads;
      for (u64 i = static_cast<u64>(block.index()) * kThreads + static_cast<u64>(thread);
           i < it.m * it.n; i += step) {
        const u32 u = bits_of(it.a[i]) & 0x7FFFFFFFU;
        if (u > peak) peak = u;
        if (u >= 0x7F800000U) {
          block.min(&it.state->first_bad, i < 0xFFFFFFFEU ? static_cast<u32>(i) : 0xFFFFFFFEU);
        }
      }
      block.min(&it.state->not_peak, ~peak);
    });
  }
};

// One partial sum of squares a block.
struct SquareSum {
  static constexpr int kThreads = low_rank::kThreads;
  using Args = Matrix;
  struct Shared {
    double warps[kThreads / 32];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& it) {
    const float scale = scale_of(*it.state);
    typename Block::template Private<double> sum;
    block.each([&](int thread) {
      sum[thread] = 0.0;
      const u64 step = static_cast<u64>(block.blocks()) * kThreads;
      for (u64 i = static_cast<u64>(block.index()) * kThreads + static_cast<u64>(thread);
           i < it.m * it.n; i += step) {
        const double a = static_cast<double>(it.a[i] * scale);
        sum[thread] += a * a;
      }
    });
    const double all = block.reduce(sum, shared.warps, [](double a, double b) { return a + b; });
    block.each([&](int thread) {
      if (thread == 0) it.squares[block.index()] = all;
    });
  }
};

// Sets the energy of A, or looks at what is missing of it and decides whether to go on. One block.
struct Look {
  static constexpr int kThreads = 32;
  struct Args {
    Matrix it;
    u64 squares;
    double tolerance;
    bool first;  // sets the energy
    bool decides;
  };
  struct Shared {
    double warps[1];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    typename Block::template Private<double> sum;
    block.each([&](int thread) {
      sum[thread] = 0.0;
      for (u64 i = static_cast<u64>(thread); i < args.squares; i += kThreads)
        sum[thread] += args.it.squares[i];
    });
    const double all = block.reduce(sum, shared.warps, [](double a, double b) { return a + b; });
    block.each([&](int thread) {
      State& state = *args.it.state;
      if (thread != 0 || state.done != 0) return;
      if (args.first) {
        state.energy = state.missing = all;
        return;
      }
      const double missing = state.energy - all;
      const bool little = missing <= 1e-12 * state.energy;
      const bool slow = state.missing - missing < args.tolerance * state.missing;
      state.missing = missing;
      if (args.decides && (little || slow)) state.done = 1;
    });
  }
};

// hash64(0, seed, 0, i) of edge_runtime/rng.py in [-0.5, 0.5), as the processor draws; the first
// columns from `warm`.
struct Start {
  static constexpr int kThreads = low_rank::kThreads;
  struct Args {
    float* v;  // (n, p)
    u64 n, width;
    u64 prefix;
    const float* warm;  // element (i, j) at i row + j column
    u64 warm_rank, row, column;
  };
  struct Shared {
    u32 unused;
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared&, const Args& args) {
    block.each([&](int thread) {
      const u64 step = static_cast<u64>(block.blocks()) * kThreads;
      for (u64 i = static_cast<u64>(block.index()) * kThreads + static_cast<u64>(thread);
           i < args.n * args.width; i += step) {
        const u64 row = i / args.width;
        const u64 column = i % args.width;
        const u32 word = static_cast<u32>(hashed(args.prefix, i) >> 40U);
        args.v[i] = column < args.warm_rank ? args.warm[row * args.row + column * args.column]
                                            : static_cast<float>(word) * 0x1p-24F - 0.5F;
      }
    });
  }
};

// parts[split] = A x (m, p), or A^T x (n, p), over one split of the sum.
template <bool kTransposed>
struct Multiply {
  static constexpr int kThreads = kTileThreads;
  struct Args {
    Matrix it;
    const float* x;
  };
  using Shared = TileOperands;
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const Matrix& it = args.it;
    if (it.state->done != 0) return;
    const u64 rows = kTransposed ? it.n : it.m;
    const u64 depth = kTransposed ? it.m : it.n;
    const u64 columns = ceil_div(it.width, kTileSide);
    const u64 split = block.index() % it.splits;
    const u64 tile = block.index() / it.splits;
    const u64 row_from = tile / columns * kTileSide;
    const u64 column_from = tile % columns * kTileSide;
    // Parts of whole tiles of the sum.
    const u64 share = ceil_div(ceil_div(depth, kTileDepth), it.splits) * kTileDepth;
    const u64 from = split * share < depth ? split * share : depth;
    const u64 count = depth - from < share ? depth - from : share;
    const float scale = scale_of(*it.state);
    typename Block::template Private<TileSums> sums;
    clear(block, sums);
    add_product<!kTransposed, false>(
        block, shared, count,
        [&](int place, u64 k) {
          const u64 row = row_from + static_cast<u64>(place);
          if (row >= rows) return 0.0F;
          return scale *
                 (kTransposed ? it.a[(from + k) * it.n + row] : it.a[row * it.n + from + k]);
        },
        [&](int place, u64 k) {
          const u64 column = column_from + static_cast<u64>(place);
          return column < it.width ? args.x[(from + k) * it.width + column] : 0.0F;
        },
        sums);
    block.each([&](int thread) {
      for (int i = 0; i < 4; ++i) {
        const u64 row = row_from + static_cast<u64>(tile_row(thread) + i);
        for (int j = 0; j < 4; ++j) {
          const u64 column = column_from + static_cast<u64>(tile_column(thread) + j);
          if (row >= rows || column >= it.width) continue;
          it.parts[(split * rows + row) * it.width + column] = sums[thread].at[i][j];
        }
      }
    });
  }
};

// out = sum of the parts, and a partial sum of its squares a block.
struct AddParts {
  static constexpr int kThreads = low_rank::kThreads;
  struct Args {
    Matrix it;
    float* out;
    u64 size;
    bool unscaled;  // undoes the scale of A
  };
  struct Shared {
    double warps[kThreads / 32];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const Matrix& it = args.it;
    if (it.state->done != 0) return;
    const float unit = args.unscaled ? 1.0F / scale_of(*it.state) : 1.0F;
    typename Block::template Private<double> sum;
    block.each([&](int thread) {
      sum[thread] = 0.0;
      const u64 step = static_cast<u64>(block.blocks()) * kThreads;
      for (u64 i = static_cast<u64>(block.index()) * kThreads + static_cast<u64>(thread);
           i < args.size; i += step) {
        float value = it.parts[i];
        for (u64 split = 1; split < it.splits; ++split) value += it.parts[split * args.size + i];
        args.out[i] = value * unit;
        sum[thread] += static_cast<double>(value) * static_cast<double>(value);
      }
    });
    const double all = block.reduce(sum, shared.warps, [](double a, double b) { return a + b; });
    block.each([&](int thread) {
      if (thread == 0) it.squares[block.index()] = all;
    });
  }
};

}  // namespace edge::cuda::low_rank
