// What low_rank.cuh does with p columns: Gram matrices, triangular factors and eigenvectors in
// float64, and what they do to the columns.
#pragma once

#include "kernels/low_rank_large.cuh"

namespace edge::cuda::low_rank {

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

}  // namespace edge::cuda::low_rank
