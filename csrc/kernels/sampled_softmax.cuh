// Softmax cross-entropy of linear logits over some classes with its gradients, on a device: the
// contract of sampled_softmax.h, every array in device memory.
//
// Logits exist as tiles of 64 x 64 in shared memory alone; they are made three times (forward,
// gradient of the features, gradient of the rows), 10 B S D operations. Features and rows are read
// through the caches once per tile of the other axis. Sums in float32 by increasing place within a
// part; the parts, whose number depends on how many blocks fill the device, are added in order: the
// same bits in every run on one device. The loss in float64. Differs from the processor: the loss
// and the sums by rounding; a class left out because its row is a positive's is found by comparing
// all pairs, S P operations.
//
// A class that names no row makes the loss and gradients NaN, since nothing here can raise; no
// memory outside is touched.
//
// Workspace: layout() says; (splits B D + 3 S + B (4 + 2 splits)) floats, splits <= blocks / (B /
// 64), and with `updated` 64 D floats a block. Nothing is allocated and nothing waits for the host.
#pragma once

#include "cuda/product.cuh"

namespace edge::cuda::softmax {

constexpr int kThreads = kTileThreads;
constexpr u64 kBlocksPerProcessor = 2;  // as many as registers allow

struct Problem {
  const float* features;        // (B, D)
  const float* rows;            // (*, D)
  const std::int32_t* classes;  // (S), or null: row j is class j
  const std::int32_t* labels;   // (B)
  const float* correction;      // (S), or null: correction_of_all
  float* updated;               // rows again, to move in place; null: d_rows is written
  float* d_features;            // (B, D)
  float* d_rows;                // (S, D)
  float* loss;                  // (1)
  u64 batch, width, count;      // B, D, S
  u64 row_count;                // rows there are
  u64 positives;
  float correction_of_all;
  float scale;  // 0: dot product
  float lr;
  bool own_positives;
  // The workspace:
  float* inverse_feature;  // (B): 1 / |f|, or 1
  float* inverse_row;      // (S): 1 / |w|, or 1
  float* bias;             // (S): correction, -infinity for what is left out
  float* peaks;            // (splits, B)
  float* sums;             // (splits, B)
  float* targets;          // (B)
  float* log_sums;         // (B)
  float* share;            // (1): 1 / labelled, or 0
  float* d_parts;          // (splits, B, D)
  float* d_tiles;          // (blocks, 64, D)
  u64 splits;
};

#if defined(__CUDA_ARCH__)
EDGE_DEVICE float exponential(float x) { return expf(x); }
EDGE_DEVICE float logarithm(float x) { return logf(x); }
EDGE_DEVICE float root(float x) { return sqrtf(x); }
#else
EDGE_DEVICE float exponential(float x) { return std::exp(x); }
EDGE_DEVICE float logarithm(float x) { return std::log(x); }
EDGE_DEVICE float root(float x) { return std::sqrt(x); }
#endif

EDGE_DEVICE u64 place_of(const Problem& it, u64 j) {
  return it.classes == nullptr ? j : static_cast<u64>(static_cast<u32>(it.classes[j]));
}
EDGE_DEVICE const float* row_of(const Problem& it, u64 j) {
  const u64 place = place_of(it, j);
  return it.rows + (place < it.row_count ? place : 0) * it.width;
}

// 1 / |v| of every feature and row, 1 for dot products; a vector shorter than 1e-19 counts as zero.
struct Lengths {
  static constexpr int kThreads = softmax::kThreads;
  using Args = Problem;
  struct Shared {
    float warps[kThreads / 32];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& it) {
    for (u64 vector = block.index(); vector < it.batch + it.count; vector += block.blocks()) {
      const bool feature = vector < it.batch;
      const float* const x =
          feature ? it.features + vector * it.width : row_of(it, vector - it.batch);
      typename Block::template Private<float> square;
      block.each([&](int thread) {
        square[thread] = 0.0F;
        for (u64 k = static_cast<u64>(thread); k < it.width; k += kThreads) {
          square[thread] = fused(x[k], x[k], square[thread]);
        }
      });
      const float sum = block.reduce(square, shared.warps, [](float a, float b) { return a + b; });
      block.each([&](int thread) {
        if (thread != 0) return;
        const float inverse = sum < 1e-38F ? 0.0F : 1.0F / root(sum);
        (feature ? it.inverse_feature[vector] : it.inverse_row[vector - it.batch]) = inverse;
      });
    }
  }
};

// What is added to each class's logits.
struct Bias {
  static constexpr int kThreads = softmax::kThreads;
  using Args = Problem;
  struct Shared {
    std::int32_t rows[kThreads];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& it) {
    const u64 first = static_cast<u64>(block.index()) * kThreads;
    typename Block::template Private<bool> hit;
    block.each([&](int thread) { hit[thread] = false; });
    const u64 others = it.classes == nullptr || first + kThreads <= it.positives ? 0 : it.positives;
    for (u64 from = 0; from < others; from += kThreads) {
      const u64 here = others - from < kThreads ? others - from : kThreads;
      block.each([&](int thread) {
        if (static_cast<u64>(thread) < here) {
          shared.rows[thread] = it.classes[from + static_cast<u64>(thread)];
        }
      });
      block.each([&](int thread) {
        const u64 j = first + static_cast<u64>(thread);
        if (j >= it.count || j < it.positives) return;
        for (u64 p = 0; p < here; ++p) hit[thread] = hit[thread] || shared.rows[p] == it.classes[j];
      });
    }
    block.each([&](int thread) {
      const u64 j = first + static_cast<u64>(thread);
      if (j >= it.count) return;
      const float correction = it.correction == nullptr ? it.correction_of_all : it.correction[j];
      const float bias = hit[thread] ? -INFINITY : j < it.positives ? 0.0F : correction;
      it.bias[j] = place_of(it, j) < it.row_count ? bias : NAN;
    });
  }
};

EDGE_DEVICE bool labelled(const Problem& it, u64 b) {
  return b < it.batch && it.labels[b] >= 0 && static_cast<u64>(it.labels[b]) < it.count;
}

// A logit from its dot product; -infinity where class j does not count for example b.
EDGE_DEVICE float logit(const Problem& it, u64 b, u64 j, float dot) {
  if (j >= it.count) return -INFINITY;
  const bool other = it.own_positives && j < it.positives && static_cast<u64>(it.labels[b]) != j;
  if (other) return -INFINITY;
  const float cosine =
      it.scale == 0.0F ? dot : it.scale * (dot * it.inverse_feature[b] * it.inverse_row[j]);
  return cosine + it.bias[j];
}

struct Operands {
  const Problem& it;
  u64 batch_from;
  u64 class_from;
  EDGE_DEVICE float feature(int place, u64 k) const {
    const u64 b = batch_from + static_cast<u64>(place);
    return labelled(it, b) ? it.features[b * it.width + k] : 0.0F;
  }
  EDGE_DEVICE float row(int place, u64 k) const {
    const u64 j = class_from + static_cast<u64>(place);
    return j < it.count ? row_of(it, j)[k] : 0.0F;
  }
};

// The running maximum and sum of exponentials of one example over some of its classes.
struct Online {
  float peak;
  float sum;
};
EDGE_DEVICE Online joined(const Online& a, const Online& b) {
  const float peak = a.peak > b.peak ? a.peak : b.peak;
  if (peak == -INFINITY) return {peak, a.sum + b.sum};
  return {peak, a.sum * exponential(a.peak - peak) + b.sum * exponential(b.peak - peak)};
}
EDGE_DEVICE Online with(const Online& a, float logit) {
  if (logit == -INFINITY) return a;
  if (logit > a.peak) return {logit, a.sum * exponential(a.peak - logit) + 1.0F};
  return {a.peak, a.sum + exponential(logit - a.peak)};
}

EDGE_BOTH u64 tiles(u64 size) { return ceil_div(size, kTileSide); }

// Peak and sum of one split's classes for 64 examples, and the logits of their labels.
struct Forward {
  static constexpr int kThreads = softmax::kThreads;
  using Args = Problem;
  struct Shared {
    TileOperands operands;
    Online online[kTileSide][16];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& it) {
    const u64 batch_from = block.index() / it.splits * kTileSide;
    const u64 split = block.index() % it.splits;
    typename Block::template Private<Online[4]> online;
    block.each([&](int thread) {
      for (int i = 0; i < 4; ++i) online[thread][i] = {-INFINITY, 0.0F};
    });
    for (u64 tile = split; tile < tiles(it.count); tile += it.splits) {
      const Operands from{it, batch_from, tile * kTileSide};
      typename Block::template Private<TileSums> dots;
      clear(block, dots);
      add_product<true, true>(
          block, shared.operands, it.width, [&](int i, u64 k) { return from.feature(i, k); },
          [&](int j, u64 k) { return from.row(j, k); }, dots);
      block.each([&](int thread) {
        for (int i = 0; i < 4; ++i) {
          const u64 b = batch_from + static_cast<u64>(tile_row(thread) + i);
          if (!labelled(it, b)) continue;
          for (int c = 0; c < 4; ++c) {
            const u64 j = from.class_from + static_cast<u64>(tile_column(thread) + c);
            const float o = logit(it, b, j, dots[thread].at[i][c]);
            online[thread][i] = with(online[thread][i], o);
            if (j == static_cast<u64>(it.labels[b])) it.targets[b] = o;
          }
        }
      });
    }
    block.each([&](int thread) {
      for (int i = 0; i < 4; ++i)
        shared.online[tile_row(thread) + i][thread % 16] = online[thread][i];
    });
    block.each([&](int thread) {
      const u64 b = batch_from + static_cast<u64>(thread);
      if (thread >= kTileSide || b >= it.batch) return;
      Online all = shared.online[thread][0];
      for (int part = 1; part < 16; ++part) all = joined(all, shared.online[thread][part]);
      it.peaks[split * it.batch + b] = all.peak;
      it.sums[split * it.batch + b] = all.sum;
    });
  }
};

// Joins the splits; the mean loss. One block.
struct Loss {
  static constexpr int kThreads = softmax::kThreads;
  using Args = Problem;
  struct Shared {
    double warps[kThreads / 32];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& it) {
    typename Block::template Private<double> loss;
    typename Block::template Private<double> counted;
    block.each([&](int thread) {
      loss[thread] = counted[thread] = 0.0;
      for (u64 b = static_cast<u64>(thread); b < it.batch; b += kThreads) {
        if (!labelled(it, b)) continue;
        Online all{it.peaks[b], it.sums[b]};
        for (u64 split = 1; split < it.splits; ++split) {
          const u64 at = split * it.batch + b;
          all = joined(all, {it.peaks[at], it.sums[at]});
        }
        it.log_sums[b] = all.peak + logarithm(all.sum);
        loss[thread] += static_cast<double>(all.peak) - static_cast<double>(it.targets[b]) +
                        static_cast<double>(logarithm(all.sum));
        counted[thread] += 1.0;
      }
    });
    const auto plus = [](double a, double b) { return a + b; };
    const double total = block.reduce(loss, shared.warps, plus);
    const double examples = block.reduce(counted, shared.warps, plus);
    block.each([&](int thread) {
      if (thread != 0) return;
      *it.loss = examples > 0.0 ? static_cast<float>(total / examples) : 0.0F;
      *it.share = examples > 0.0 ? static_cast<float>(1.0 / examples) : 0.0F;
    });
  }
};

// The gradient of 64 features (kFeatures) over one split of the classes, or of 64 rows over all
// examples:
//   out[own, :] = sum over other of G[own, other] x_other
struct Slopes {
  float at[kTileSide][kTileSide + 4];  // G as (other, own)
};

template <bool kFeatures>
struct Backward {
  static constexpr int kThreads = softmax::kThreads;
  using Args = Problem;
  struct Shared {
    TileOperands operands;
    Slopes slopes;
    float along[kTileSide];
  };

  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& it) {
    if (kFeatures) {
      const u64 own = block.index() / it.splits;
      const u64 split = block.index() % it.splits;
      float* const out = it.splits == 1 ? it.d_features : it.d_parts + split * it.batch * it.width;
      gradient(block, shared, it, own, split, it.splits, out + own * kTileSide * it.width);
    } else {
      for (u64 own = block.index(); own < tiles(it.count); own += block.blocks()) {
        float* const out = it.updated == nullptr
                               ? it.d_rows + own * kTileSide * it.width
                               : it.d_tiles + block.index() * kTileSide * it.width;
        gradient(block, shared, it, own, 0, 1, out);
        finish_rows(block, shared, it, own * kTileSide, out);
      }
    }
  }

  // Tiles of the other axis from `first` in steps of `step`; what is owned is at `own`.
  template <class Block>
  EDGE_DEVICE static void gradient(Block& block, Shared& shared, const Problem& it, u64 own,
                                   u64 first, u64 step, float* out) {
    const u64 own_size = kFeatures ? it.batch : it.count;
    const u64 other_size = kFeatures ? it.count : it.batch;
    const u64 own_from = own * kTileSide;
    const u64 rows = own_size - own_from < kTileSide ? own_size - own_from : kTileSide;
    if (first >= tiles(other_size)) zero(block, out, rows * it.width);
    for (u64 tile = first; tile < tiles(other_size); tile += step) {
      const u64 other_from = tile * kTileSide;
      const Operands from{it, kFeatures ? own_from : other_from, kFeatures ? other_from : own_from};
      slopes(block, shared, from);
      for (u64 column = 0; column < it.width; column += kTileSide) {
        const u64 columns = it.width - column < kTileSide ? it.width - column : kTileSide;
        accumulate(block, shared, from, column, columns, rows, tile == first, out);
      }
    }
  }

  // G of one tile, with the chain rule's factors of cosine logits: of the dot product of both
  // vectors after the other has length 1.
  template <class Block>
  EDGE_DEVICE static void slopes(Block& block, Shared& shared, const Operands& from) {
    const Problem& it = from.it;
    typename Block::template Private<TileSums> dots;
    clear(block, dots);
    add_product<true, true>(
        block, shared.operands, it.width, [&](int i, u64 k) { return from.feature(i, k); },
        [&](int j, u64 k) { return from.row(j, k); }, dots);
    block.each([&](int thread) {
      for (int i = 0; i < 4; ++i) {
        const int example = tile_row(thread) + i;
        for (int c = 0; c < 4; ++c) {
          const int column = tile_column(thread) + c;
          const float g = slope(it, from.batch_from + static_cast<u64>(example),
                                from.class_from + static_cast<u64>(column), dots[thread].at[i][c]);
          if (kFeatures) {
            shared.slopes.at[column][example] = g;
          } else {
            shared.slopes.at[example][column] = g;
          }
        }
      }
    });
  }

  EDGE_DEVICE static float slope(const Problem& it, u64 b, u64 j, float dot) {
    if (!labelled(it, b)) return 0.0F;
    const float o = logit(it, b, j, dot);
    if (o == -INFINITY) return 0.0F;
    const float hot = j == static_cast<u64>(it.labels[b]) ? 1.0F : 0.0F;
    const float g = (exponential(o - it.log_sums[b]) - hot) * *it.share;
    if (it.scale == 0.0F) return g;
    return it.scale * g * (kFeatures ? it.inverse_row[j] : it.inverse_feature[b]);
  }

  template <class Block>
  EDGE_DEVICE static void accumulate(Block& block, Shared& shared, const Operands& from, u64 column,
                                     u64 columns, u64 rows, bool fresh, float* out) {
    const Problem& it = from.it;
    typename Block::template Private<TileSums> sums;
    clear(block, sums);
    add_product<false, false>(
        block, shared.operands, kTileSide,
        [&](int own, u64 other) { return shared.slopes.at[other][own]; },
        [&](int c, u64 other) {
          const u64 k = column + static_cast<u64>(c);
          if (k >= it.width) return 0.0F;
          return kFeatures ? from.row(static_cast<int>(other), k)
                           : from.feature(static_cast<int>(other), k);
        },
        sums);
    block.each([&](int thread) {
      for (int i = 0; i < 4; ++i) {
        const u64 row = static_cast<u64>(tile_row(thread) + i);
        for (int c = 0; c < 4; ++c) {
          const u64 place = static_cast<u64>(tile_column(thread) + c);
          if (row >= rows || place >= columns) continue;
          float& to = out[row * it.width + column + place];
          to = fresh ? sums[thread].at[i][c] : to + sums[thread].at[i][c];
        }
      }
    });
  }

  template <class Block>
  EDGE_DEVICE static void zero(Block& block, float* out, u64 size) {
    block.each([&](int thread) {
      for (u64 i = static_cast<u64>(thread); i < size; i += kThreads) out[i] = 0.0F;
    });
  }

  // Cosine: what lies along the row goes, the rest is divided by its length. Then the step, if
  // asked for.
  template <class Block>
  EDGE_DEVICE static void finish_rows(Block& block, Shared& shared, const Problem& it, u64 from,
                                      float* out) {
    if (it.scale == 0.0F && it.updated == nullptr) return;
    const u64 rows = it.count - from < kTileSide ? it.count - from : kTileSide;
    block.each([&](int thread) {
      const u64 row = static_cast<u64>(thread);
      if (row >= rows) return;
      float sum = 0.0F;
      const float* const w = row_of(it, from + row);
      for (u64 k = 0; it.scale != 0.0F && k < it.width; ++k) {
        sum = fused(out[row * it.width + k], w[k], sum);
      }
      shared.along[thread] = sum;
    });
    block.each([&](int thread) {
      for (u64 i = static_cast<u64>(thread); i < rows * it.width; i += kThreads) {
        const u64 j = from + i / it.width;
        const u64 k = i % it.width;
        const float inverse = it.scale == 0.0F ? 1.0F : it.inverse_row[j];
        const float w = row_of(it, j)[k];
        float d = out[i];
        if (it.scale != 0.0F)
          d = inverse * (d - shared.along[i / it.width] * inverse * inverse * w);
        if (it.updated == nullptr) {
          out[i] = d;
        } else if (it.bias[j] != -INFINITY) {  // else another class moves this row
          it.updated[static_cast<u64>(row_of(it, j) - it.rows) + k] = w - it.lr * d;
        }
      }
    });
  }
};

// Adds the splits' gradients of the features, in order; cosine as in finish_rows.
struct JoinFeatures {
  static constexpr int kThreads = softmax::kThreads;
  using Args = Problem;
  struct Shared {
    float warps[kThreads / 32];
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& it) {
    for (u64 b = block.index(); b < it.batch; b += block.blocks()) {
      const float* const f = it.features + b * it.width;
      float* const out = it.d_features + b * it.width;
      typename Block::template Private<float> along;
      block.each([&](int thread) {
        along[thread] = 0.0F;
        for (u64 k = static_cast<u64>(thread); k < it.width; k += kThreads) {
          float sum = it.splits == 1 ? out[k] : 0.0F;
          for (u64 split = 0; it.splits > 1 && split < it.splits; ++split) {
            sum += it.d_parts[(split * it.batch + b) * it.width + k];
          }
          out[k] = sum;
          if (it.scale != 0.0F && labelled(it, b)) along[thread] = fused(sum, f[k], along[thread]);
        }
      });
      if (it.scale == 0.0F) continue;
      const float sum = block.reduce(along, shared.warps, [](float a, float b_) { return a + b_; });
      const float inverse = it.inverse_feature[b];
      block.each([&](int thread) {
        for (u64 k = static_cast<u64>(thread); labelled(it, b) && k < it.width; k += kThreads) {
          out[k] = inverse * (out[k] - sum * inverse * inverse * f[k]);
        }
      });
    }
  }
};

// Lays the workspace out; with a null one, says how many bytes it takes.
inline u64 layout(Problem& it, u64 processors, void* workspace) {
  const u64 blocks = processors * kBlocksPerProcessor;
  const u64 batch_tiles = tiles(it.batch);
  const u64 wanted = batch_tiles < blocks ? blocks / batch_tiles : 1;
  it.splits = wanted < tiles(it.count) ? wanted : tiles(it.count);
  Carve parts(workspace);
  it.inverse_feature = parts.take<float>(it.batch);
  it.inverse_row = parts.take<float>(it.count);
  it.bias = parts.take<float>(it.count);
  it.peaks = parts.take<float>(it.splits * it.batch);
  it.sums = parts.take<float>(it.splits * it.batch);
  it.targets = parts.take<float>(it.batch);
  it.log_sums = parts.take<float>(it.batch);
  it.share = parts.take<float>(1);
  it.d_parts = parts.take<float>(it.splits == 1 ? 0 : it.splits * it.batch * it.width);
  it.d_tiles = parts.take<float>(it.updated == nullptr ? 0 : blocks * kTileSide * it.width);
  return parts.bytes();
}

// B, D, S >= 1. Labels that name no class of 0..S-1 are not counted. Either
// d_rows or `updated` is set, and then no two classes that count name one row.
template <class Launcher>
void run(Launcher& launcher, Problem it, void* workspace) {
  layout(it, launcher.processors(), workspace);
  const u64 most = launcher.processors() * kBlocksPerProcessor;
  const auto least = [&](u64 blocks) { return blocks < most ? blocks : most; };
  launcher.template launch<Bias>(ceil_div(it.count, kThreads), it);
  if (it.scale != 0.0F) launcher.template launch<Lengths>(least(it.batch + it.count), it);
  launcher.template launch<Forward>(tiles(it.batch) * it.splits, it);
  launcher.template launch<Loss>(1, it);
  launcher.template launch<Backward<true>>(tiles(it.batch) * it.splits, it);
  if (it.splits > 1 || it.scale != 0.0F)
    launcher.template launch<JoinFeatures>(least(it.batch), it);
  launcher.template launch<Backward<false>>(least(tiles(it.count)), it);
}

}  // namespace edge::cuda::softmax
