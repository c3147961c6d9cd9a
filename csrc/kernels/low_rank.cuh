// Truncated singular value decomposition A ~ U diag(s) V^T of a dense (m, n) float32 matrix, and
// PowerSGD's step, on a device.
//
// Randomised subspace iteration from the right (Halko, Martinsson and Tropp, 2011, algorithm 4.4)
// with p = rank + 8 columns or more, a multiple of 16, never more than min(m, n):
//   V random, or last round's;  repeat T = A V, Z = A^T T, V = orth(Z);  then T = A V,
//   T^T T = W S^2 W^T,  U = T W / S,  V = V W
// Iterations stop, without the host, when one lowers ||A||^2 - ||T||^2 by less than `tolerance` of
// it, or after `iterations`. orth is CholeskyQR twice, Gram matrices and triangular factors in
// float64; a column that depends on those before it becomes zero. U is made orthonormal once more,
// because T's columns of small singular values carry the rounding of the large. The eigenvectors
// are by Jacobi rotations, in one block.
//
//   u (m, rank), s (rank) descending, vt (rank, n); the entry of largest magnitude of each column
//   of u (the first of several) is positive. Where A has less than rank r the s are 0 and their
//   columns of u and v zero. error (1) = sqrt(1 - sum s^2 / ||A||^2). used (1): the smallest rank
//   with sum s^2 >= energy ||A||^2, or `rank`. first_bad (1): -1, or (2^32 - 1 for none) the least
//   place, up to 2^32 - 2, of what is not finite; then all of the rest is NaN or 0.
//
// A is scaled by a power of two as it is read, so neither 1e-30 nor 1e30 leaves the range. 1 <=
// rank <= kMostRank; p m n multiply-adds a product, 2 iterations + 1 of them. Products in float32
// by increasing k within a part, parts in order: the same bits in every run on one device.
// Workspace: layout() says; about 4 p (m + 2 n) + 4 p (m or n) splits + 8 p^2 (2 + parts) bytes.
// Nothing is allocated and nothing waits.
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

EDGE_DEVICE double root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
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
EDGE_BOTH u64 mixed(u64 h) {
  h = (h ^ h >> 30U) * 0xBF58476D1CE4E5B9U;
  h = (h ^ h >> 27U) * 0x94D049BB133111EBU;
  return h ^ h >> 31U;
}
EDGE_BOTH u64 hashed(u64 prefix, u64 word) { return mixed((prefix ^ word) + 0x9E3779B97F4A7C15U); }

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

// grams[part] = x^T x over one part of the rows, in float64: a block a tile of 32 x 32.
struct Gram {
  static constexpr int kThreads = low_rank::kThreads;
  static constexpr u64 kSide = 32;
  struct Args {
    Matrix it;
    const float* x;
    u64 rows, width;
    bool always;  // else not when iterations are done
  };
  struct Shared {
    float left[kSide][kSide + 1];
    float right[kSide][kSide + 1];
  };
  struct Sums {
    double at[4];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    if (!args.always && args.it.state->done != 0) return;
    const u64 tiles = ceil_div(args.width, kSide);
    const u64 part = block.index() / (tiles * tiles);
    const u64 left_from = block.index() / tiles % tiles * kSide;
    const u64 right_from = block.index() % tiles * kSide;
    const u64 share = ceil_div(args.rows, kGramParts);
    const u64 first = part * share;
    const u64 last = first + share < args.rows ? first + share : args.rows;
    typename Block::template Private<Sums> sums;
    block.each([&](int thread) { sums[thread] = Sums{{0.0, 0.0, 0.0, 0.0}}; });
    for (u64 from = first; from < last; from += kSide) {
      block.each([&](int thread) {
        for (int j = 0; j < 4; ++j) {
          const u64 k = static_cast<u64>(thread) / kSide + static_cast<u64>(8 * j);
          const u64 column = static_cast<u64>(thread) % kSide;
          const bool inside = from + k < last;
          const float* const row = args.x + (from + k) * args.width;
          shared.left[k][column] =
              inside && left_from + column < args.width ? row[left_from + column] : 0.0F;
          shared.right[k][column] =
              inside && right_from + column < args.width ? row[right_from + column] : 0.0F;
        }
      });
      block.each([&](int thread) {
        const u64 column = static_cast<u64>(thread) % kSide;
        for (u64 k = 0; k < kSide; ++k) {
          const double right = static_cast<double>(shared.right[k][column]);
          for (u64 j = 0; j < 4; ++j) {
            sums[thread].at[j] +=
                static_cast<double>(shared.left[k][static_cast<u64>(thread) / kSide + 8 * j]) *
                right;
          }
        }
      });
    }
    block.each([&](int thread) {
      const u64 column = right_from + static_cast<u64>(thread) % kSide;
      for (u64 j = 0; j < 4; ++j) {
        const u64 row = left_from + static_cast<u64>(thread) / kSide + 8 * j;
        if (row >= args.width || column >= args.width) continue;
        args.it.grams[(part * args.width + row) * args.width + column] = sums[thread].at[j];
      }
    });
  }
};

template <class Block>
EDGE_DEVICE void add_grams(Block& block, const Matrix& it, u64 width) {
  block.each([&](int thread) {
    for (u64 i = static_cast<u64>(thread); i < width * width; i += Block::kThreads) {
      double sum = 0.0;
      for (u64 part = 0; part < kGramParts; ++part) sum += it.grams[part * width * width + i];
      it.factor[i] = sum;
    }
  });
}

// transform = R^-1 of the sum of grams = R^T R; zero columns for those that depend on earlier ones.
// One block.
struct Cholesky {
  static constexpr int kThreads = low_rank::kThreads;
  struct Args {
    Matrix it;
    u64 width;
    bool always;
  };
  struct Shared {
    double inverse[kMostWidth];  // 1 / R[k, k], or 0
    double diagonal[kMostWidth];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const Matrix& it = args.it;
    if (!args.always && it.state->done != 0) return;
    const u64 p = args.width;
    add_grams(block, it, p);
    block.each([&](int thread) {
      for (u64 k = static_cast<u64>(thread); k < p; k += kThreads)
        shared.diagonal[k] = it.factor[k * p + k];
    });
    for (u64 k = 0; k < p; ++k) {
      block.each([&](int thread) {
        const double pivot = it.factor[k * p + k];
        const double inverse = pivot > kDependent * shared.diagonal[k] ? 1.0 / root(pivot) : 0.0;
        if (thread == 0) shared.inverse[k] = inverse;
        for (u64 j = k + 1 + static_cast<u64>(thread); j < p; j += kThreads)
          it.factor[k * p + j] *= inverse;
      });
      const u64 left = p - k - 1;
      block.each([&](int thread) {
        for (u64 e = static_cast<u64>(thread); e < left * left; e += kThreads) {
          const u64 i = k + 1 + e / left;
          const u64 j = k + 1 + e % left;
          if (j >= i) it.factor[i * p + j] -= it.factor[k * p + i] * it.factor[k * p + j];
        }
      });
    }
    // Column by column, from the diagonal up.
    block.each([&](int thread) {
      for (u64 j = static_cast<u64>(thread); j < p; j += kThreads) {
        for (u64 i = 0; i < p; ++i) it.transform[i * p + j] = 0.0;
        it.transform[j * p + j] = shared.inverse[j];
        for (u64 i = j; i-- > 0;) {
          double sum = 0.0;
          for (u64 k = i + 1; k <= j; ++k) sum += it.factor[i * p + k] * it.transform[k * p + j];
          it.transform[i * p + j] = -sum * shared.inverse[i];
        }
      }
    });
  }
};

// out = x transform, in float64 and rounded once; x may be out. With `columns_first` out is (kept,
// rows).
struct Apply {
  static constexpr int kThreads = low_rank::kThreads;
  struct Args {
    const State* state;
    const float* x;
    const double* transform;
    float* out;
    u64 rows, width,
        kept;  // x (rows, width), transform (width, width) of which the first `kept` columns
    bool columns_first;
    bool always;
  };
  struct Shared {
    float x[kApplyRows][kMostWidth];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    if (!args.always && args.state->done != 0) return;
    const u64 first = static_cast<u64>(block.index()) * kApplyRows;
    const u64 rows = args.rows - first < kApplyRows ? args.rows - first : kApplyRows;
    block.each([&](int thread) {
      for (u64 i = static_cast<u64>(thread); i < rows * args.width; i += kThreads) {
        shared.x[i / args.width][i % args.width] = args.x[first * args.width + i];
      }
    });
    block.each([&](int thread) {
      for (u64 i = static_cast<u64>(thread); i < rows * args.kept; i += kThreads) {
        const u64 row = i / args.kept;
        const u64 column = i % args.kept;
        double sum = 0.0;
        for (u64 k = 0; k < args.width; ++k) {
          sum += static_cast<double>(shared.x[row][k]) * args.transform[k * args.width + column];
        }
        const u64 at = first + row;
        args.out[args.columns_first ? column * args.rows + at : at * args.kept + column] =
            static_cast<float>(sum);
      }
    });
  }
};

struct Result {
  float *u, *s, *vt, *error;
  std::int32_t *used, *first_bad;
};

// Eigenvectors of the sum of grams: s, what U and V are transformed by, and the error. One block.
struct Eigen {
  static constexpr int kThreads = low_rank::kThreads;
  struct Args {
    Matrix it;
    Result result;
    u64 rank;
    double energy;
  };
  struct Shared {
    double cosine[kMostWidth / 2];
    double sine[kMostWidth / 2];
    double values[kMostWidth];
    u32 order[kMostWidth];
    u32 rotated;
  };

  // The pair of step `step` of a tournament of `players`, an even number; all pairs meet in players
  // - 1 steps.
  struct Pair {
    u64 low, high;
  };
  EDGE_DEVICE static Pair pair_of(u64 players, u64 step, u64 number) {
    const u64 circle = players - 1;
    const u64 a = number == 0 ? circle : (step + number) % circle;
    const u64 b = (step + circle - number) % circle;
    return a < b ? Pair{a, b} : Pair{b, a};
  }

  // Makes entry (low, high) zero.
  EDGE_DEVICE static void rotation(Shared& shared, const double* g, u64 p, const Pair& pair,
                                   u64 number) {
    shared.cosine[number] = 1.0;
    shared.sine[number] = 0.0;
    if (pair.high >= p) return;
    const double off = g[pair.low * p + pair.high];
    const double a = g[pair.low * p + pair.low];
    const double b = g[pair.high * p + pair.high];
    const double product = a * b;
    if (!(off * off > 1e-32 * (product < 0.0 ? -product : product)) || off == 0.0) return;
    const double ratio = (b - a) / (2.0 * off);
    const double size = ratio < 0.0 ? -ratio : ratio;
    const double tangent = (ratio < 0.0 ? -1.0 : 1.0) / (size + root(1.0 + ratio * ratio));
    shared.cosine[number] = 1.0 / root(1.0 + tangent * tangent);
    shared.sine[number] = tangent * shared.cosine[number];
    shared.rotated = 1;
  }

  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const Matrix& it = args.it;
    const u64 p = it.width;
    double* const g = it.factor;
    double* const w = it.transform_v;
    add_grams(block, it, p);
    block.each([&](int thread) {
      for (u64 i = static_cast<u64>(thread); i < p * p; i += kThreads)
        w[i] = i / p == i % p ? 1.0 : 0.0;
    });
    const u64 players = p + p % 2;
    for (int sweep = 0; sweep < kSweeps && p > 1; ++sweep) {
      block.each([&](int thread) {
        if (thread == 0) shared.rotated = 0;
      });
      for (u64 step = 0; step + 1 < players; ++step) turn(block, shared, g, w, p, players, step);
      if (block.uniform(shared.rotated) == 0) break;
    }
    finish(block, shared, args, g, w);
  }

  template <class Block>
  EDGE_DEVICE static void turn(Block& block, Shared& shared, double* g, double* w, u64 p,
                               u64 players, u64 step) {
    const u64 pairs = players / 2;
    block.each([&](int thread) {
      const u64 number = static_cast<u64>(thread);
      if (number < pairs) rotation(shared, g, p, pair_of(players, step, number), number);
    });
    // Columns of G and W, then rows of G: every element belongs to one pair.
    for (int side = 0; side < 2; ++side) {
      block.each([&](int thread) {
        for (u64 e = static_cast<u64>(thread); e < pairs * p; e += kThreads) {
          const u64 number = side == 0 ? e % pairs : e / p;
          const u64 k = side == 0 ? e / pairs : e % p;
          const Pair pair = pair_of(players, step, number);
          const double c = shared.cosine[number];
          const double s = shared.sine[number];
          if (pair.high >= p || s == 0.0) continue;
          if (side == 0) {
            rotate(g[k * p + pair.low], g[k * p + pair.high], c, s);
            rotate(w[k * p + pair.low], w[k * p + pair.high], c, s);
          } else {
            rotate(g[pair.low * p + k], g[pair.high * p + k], c, s);
          }
        }
      });
    }
  }
  EDGE_DEVICE static void rotate(double& a, double& b, double c, double s) {
    const double before = a;
    a = c * before - s * b;
    b = s * before + c * b;
  }

  // By descending value; transforms for U (divided by s) and V, in `transform` and `factor`.
  template <class Block>
  EDGE_DEVICE static void finish(Block& block, Shared& shared, const Args& args, double* g,
                                 const double* w) {
    const Matrix& it = args.it;
    const u64 p = it.width;
    block.each([&](int thread) {
      for (u64 j = static_cast<u64>(thread); j < p; j += kThreads) {
        const double value = g[j * p + j];
        shared.values[j] = value < 0.0 ? 0.0 : value;
        shared.order[j] = static_cast<u32>(j);
      }
    });
    block.each([&](int thread) {
      for (u64 j = static_cast<u64>(thread); j < p; j += kThreads) {
        u64 place = 0;
        for (u64 i = 0; i < p; ++i) {
          const bool before = shared.values[i] > shared.values[j] ||
                              (shared.values[i] == shared.values[j] && i < j);
          place += before ? 1U : 0U;
        }
        shared.order[place] = static_cast<u32>(j);
      }
    });
    const double floor = kDependent * shared_value(block, shared, 0);
    block.each([&](int thread) {
      for (u64 e = static_cast<u64>(thread); e < p * p; e += kThreads) {
        const u32 from = shared.order[e % p];
        const double value = shared.values[from];
        const double entry = w[e / p * p + from];
        const bool kept = value > floor || value != value;
        it.transform[e] = kept ? entry / root(value) : 0.0;
        g[e] = kept ? entry : 0.0;
      }
      if (thread == 0) report(args, shared, floor);
    });
  }
  template <class Block>
  EDGE_DEVICE static double shared_value(Block& block, Shared& shared, u64 place) {
    return block.uniform(shared.values[shared.order[place]]);
  }

  EDGE_DEVICE static void report(const Args& args, const Shared& shared, double floor) {
    const State& state = *args.it.state;
    const double unit = 1.0 / static_cast<double>(scale_of(state));
    double captured = 0.0;
    u64 used = args.rank;
    for (u64 j = 0; j < args.rank; ++j) {
      const double value = shared.values[shared.order[j]];
      captured += value;
      args.result.s[j] =
          static_cast<float>(value > floor || value != value ? unit * root(value) : 0.0);
      if (used == args.rank && captured >= args.energy * state.energy) used = j + 1;
    }
    const double missing = state.energy > 0.0 ? 1.0 - captured / state.energy : 0.0;
    *args.result.error = static_cast<float>(missing < 0.0 ? 0.0 : root(missing));
    *args.result.used = static_cast<std::int32_t>(used);
    *args.result.first_bad = static_cast<std::int32_t>(state.first_bad);
  }
};

struct Report {
  static constexpr int kThreads = 32;
  struct Args {
    const State* state;
    std::int32_t* first_bad;
  };
  struct Shared {
    u32 unused;
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared&, const Args& args) {
    block.each([&](int thread) {
      if (thread == 0) *args.first_bad = static_cast<std::int32_t>(args.state->first_bad);
    });
  }
};

// Makes the largest entry of each column of u positive: a block a column.
struct Signs {
  static constexpr int kThreads = low_rank::kThreads;
  struct Args {
    float* u;
    float* vt;
    u64 m, n, rank;
  };
  struct Shared {
    float largest[kThreads];
    u64 at[kThreads];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const u64 column = block.index();
    block.each([&](int thread) {
      float largest = -1.0F;
      u64 at = 0;
      for (u64 i = static_cast<u64>(thread); i < args.m; i += kThreads) {
        const float value = float_of(bits_of(args.u[i * args.rank + column]) & 0x7FFFFFFFU);
        if (value > largest) {
          largest = value;
          at = i;
        }
      }
      shared.largest[thread] = largest;
      shared.at[thread] = at;
    });
    for (int half = kThreads / 2; half > 0; half /= 2) {
      block.each([&](int thread) {
        if (thread >= half) return;
        const int other = thread + half;
        const bool tie =
            shared.largest[other] == shared.largest[thread] && shared.at[other] < shared.at[thread];
        if (!(shared.largest[other] > shared.largest[thread]) && !tie) return;
        shared.largest[thread] = shared.largest[other];
        shared.at[thread] = shared.at[other];
      });
    }
    const u64 at = block.uniform(shared.at[0]);
    // Read before anything is turned.
    const bool negative = block.uniform(args.u[at * args.rank + column]) < 0.0F;
    if (!negative) return;
    block.each([&](int thread) {
      for (u64 i = static_cast<u64>(thread); i < args.m; i += kThreads) {
        args.u[i * args.rank + column] = -args.u[i * args.rank + column];
      }
      for (u64 i = static_cast<u64>(thread); i < args.n; i += kThreads) {
        args.vt[column * args.n + i] = -args.vt[column * args.n + i];
      }
    });
  }
};

inline u64 width_of(u64 m, u64 n, u64 rank) {
  const u64 wanted = ceil_div(rank + 8, 16) * 16;
  const u64 most = m < n ? m : n;
  return wanted < most ? wanted : most;
}

struct Buffers {
  float* v;  // (n, p)
  float* t;  // (m, p)
};

inline u64 grid(u64 processors, u64 units) {
  const u64 most = processors * 4;
  return units < most ? units : most;
}

// Lays the workspace out; with a null one, says how many bytes it takes. m, n and width are set. A
// step of PowerSGD needs no buffers.
inline u64 layout(Matrix& it, u64 processors, void* workspace, Buffers* buffers) {
  const u64 columns = ceil_div(it.width, kTileSide);
  const u64 least = it.m < it.n ? it.m : it.n;
  const u64 most = it.m < it.n ? it.n : it.m;
  const u64 wanted = ceil_div(2 * processors, ceil_div(most, kTileSide) * columns);
  const u64 possible = ceil_div(least, 4 * kTileDepth);
  it.splits = wanted < possible ? wanted : possible;
  Carve parts(workspace);
  it.state = parts.take<State>(1);
  it.squares = parts.take<double>(processors * 4);
  it.grams = parts.take<double>(kGramParts * it.width * it.width);
  it.factor = parts.take<double>(it.width * it.width);
  it.transform = parts.take<double>(it.width * it.width);
  it.transform_v = parts.take<double>(it.width * it.width);
  if (buffers != nullptr) {
    buffers->v = parts.take<float>(it.n * it.width);
    buffers->t = parts.take<float>(it.m * it.width);
  }
  it.parts = parts.take<float>(it.splits * most * it.width);
  return parts.bytes();
}

template <bool kTransposed, class Launcher>
void multiply(Launcher& launcher, const Matrix& it, const float* x, float* out,
              bool unscaled = false) {
  const u64 rows = kTransposed ? it.n : it.m;
  const u64 tiles = ceil_div(rows, kTileSide) * ceil_div(it.width, kTileSide);
  launcher.template launch<Multiply<kTransposed>>(tiles * it.splits, {it, x});
  const u64 size = rows * it.width;
  launcher.template launch<AddParts>(grid(launcher.processors(), ceil_div(size, kThreads)),
                                     {it, out, size, unscaled});
}

template <class Launcher>
void gram(Launcher& launcher, const Matrix& it, const float* x, u64 rows, u64 width, bool always) {
  const u64 tiles = ceil_div(width, Gram::kSide);
  launcher.template launch<Gram>(kGramParts * tiles * tiles, {it, x, rows, width, always});
}

// x (rows, width) becomes orthonormal, in place.
template <class Launcher>
void orthonormal(Launcher& launcher, const Matrix& it, float* x, u64 rows, u64 width, bool always) {
  for (int pass = 0; pass < 2; ++pass) {
    gram(launcher, it, x, rows, width, always);
    launcher.template launch<Cholesky>(1, {it, width, always});
    launcher.template launch<Apply>(ceil_div(rows, kApplyRows), {it.state, x, it.transform, x, rows,
                                                                 width, width, false, always});
  }
}

template <class Launcher>
void measure(Launcher& launcher, const Matrix& it) {
  launcher.fill(it.state, 0, sizeof(State));
  launcher.fill(&it.state->not_peak, 0xFF, 2 * sizeof(u32));  // and first_bad
  const u64 blocks = grid(launcher.processors(), ceil_div(it.m * it.n, kThreads));
  launcher.template launch<Peak>(blocks, it);
  launcher.template launch<SquareSum>(blocks, it);
  launcher.template launch<Look>(1, {it, blocks, 0.0, true, false});
}

struct Settings {
  u64 rank;
  u64 seed;
  const float* warm;  // (warm_rank, n), or null
  u64 warm_rank;
  u64 iterations;
  double tolerance;
  double energy;
};

template <class Launcher>
void truncated_svd(Launcher& launcher, const float* a, u64 m, u64 n, const Settings& settings,
                   const Result& result, void* workspace) {
  Matrix it{};
  Buffers buffers{};
  it.a = a, it.m = m, it.n = n, it.width = width_of(m, n, settings.rank);
  layout(it, launcher.processors(), workspace, &buffers);
  const u64 p = it.width;
  const u64 rank = settings.rank;
  measure(launcher, it);
  const u64 prefix = hashed(hashed(mixed(0x9E3779B97F4A7C15U), settings.seed), 0);
  const u64 warm_rank = settings.warm == nullptr ? 0
                        : settings.warm_rank < p ? settings.warm_rank
                                                 : p;
  launcher.template launch<Start>(grid(launcher.processors(), ceil_div(n * p, kThreads)),
                                  {buffers.v, n, p, prefix, settings.warm, warm_rank, 1, n});
  if (warm_rank > 0 || settings.iterations == 0) orthonormal(launcher, it, buffers.v, n, p, true);
  const u64 blocks = grid(launcher.processors(), ceil_div(m * p, kThreads));
  for (u64 iteration = 0; iteration < settings.iterations; ++iteration) {
    multiply<false>(launcher, it, buffers.v, buffers.t);
    // V is orthonormal from the first iteration on.
    if (iteration > 0)
      launcher.template launch<Look>(1, {it, blocks, settings.tolerance, false, iteration > 1});
    multiply<true>(launcher, it, buffers.t, buffers.v);
    orthonormal(launcher, it, buffers.v, n, p, false);
  }
  multiply<false>(launcher, it, buffers.v, buffers.t);
  gram(launcher, it, buffers.t, m, p, true);
  launcher.template launch<Eigen>(1, {it, result, rank, settings.energy});
  launcher.template launch<Apply>(ceil_div(m, kApplyRows), {it.state, buffers.t, it.transform,
                                                            result.u, m, p, rank, false, true});
  launcher.template launch<Apply>(
      ceil_div(n, kApplyRows), {it.state, buffers.v, it.factor, result.vt, n, p, rank, true, true});
  gram(launcher, it, result.u, m, rank, true);
  launcher.template launch<Cholesky>(1, {it, rank, true});
  launcher.template launch<Apply>(ceil_div(m, kApplyRows), {it.state, result.u, it.transform,
                                                            result.u, m, rank, rank, false, true});
  launcher.template launch<Signs>(rank, {result.u, result.vt, m, n, rank});
}

// One step of subspace iteration from last round's q (n, rank): p = orth(A q), then q = A^T p, so A
// ~ p q^T (Vogels et al., 2019). Only the span of q counts; columns of p that A q does not reach
// are zero, and so are then those of q. rank <= kMostWidth.
template <class Launcher>
void power_step(Launcher& launcher, const float* a, u64 m, u64 n, u64 rank, const float* q,
                float* p, float* next_q, std::int32_t* first_bad, void* workspace) {
  Matrix it{};
  it.a = a, it.m = m, it.n = n, it.width = rank;
  layout(it, launcher.processors(), workspace, nullptr);
  measure(launcher, it);
  multiply<false>(launcher, it, q, p);
  orthonormal(launcher, it, p, m, rank, true);
  multiply<true>(launcher, it, p, next_q, true);
  launcher.template launch<Report>(1, {it.state, first_bad});
}

}  // namespace edge::cuda::low_rank
