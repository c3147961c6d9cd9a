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
// Workspace: layout() says; 2 S + B (3 + 2 splits) floats, where splits > 1 splits B D more, and
// with `updated` 64 D a block; splits <= blocks / ceil(B / 64), two blocks a processor. Nothing is
// allocated and nothing waits for the host.
#pragma once

#include "kernels/sampled_softmax_logits.cuh"

namespace edge::cuda::softmax {

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
