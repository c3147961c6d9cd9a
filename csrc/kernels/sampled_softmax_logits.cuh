// The logits of sampled_softmax.cuh, tile by tile, and the loss.
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

}  // namespace edge::cuda::softmax
