// Softmax cross-entropy of linear logits over some classes, with its gradients, in one go:
//
//   o[b, j]  = f_b . w_j + c_j             dot product;   cosine, scale s:  s f^_b . w^_j + c_j,
//              v^ = v / |v|
//   loss     = sum over labelled b of log(sum_j e^o[b, j]) - o[b, y_b], over `labelled`
//   G[b, j]  = (e^o[b, j] / sum_j e^o[b, j] - [j = y_b]) / labelled, rows with label -1 zero
//   d_f_b    = sum_j G[b, j] do[b, j]/df_b,     d_w_j = sum_b G[b, j] do[b, j]/dw_j
//
// with w_j the row classes[j] of `rows`, or row j where classes is null, and c_j the correction:
// added to the logits of classes from `positives` on, 0 before. Each of the first `own` classes
// counts only for the examples it is the label of. Either d_rows[j] = d_w_j is written, or
// `updated` (the rows themselves) moves in place, w_j -= lr d_w_j; then no row may be named twice.
//
// features (B, D), rows (*, D), correction (S) float32; classes (S) int32, in range; labels (L)
// int32, of which first .. first + B are those of the features and `labelled` is the number of all
// L that are not -1 (where it is 0, loss and gradients are 0; other labels that name no class count
// as -1). d_features (B, D), d_rows (S, D); each may be null. Any alignment of 4 bytes; outputs
// overlap no input. Sums in float32 by increasing class, width and example; the loss in float64.
// Finite logits never overflow; a correction of -infinity leaves a class out. A NaN reaches the
// loss and its example's and class's gradients. Features of unlabelled rows are not looked at.
// Cosine: a vector shorter than 1e-19 counts as zero and gets no gradient, one with a square sum
// beyond float32 makes NaN.
//
// Logits exist as (class, example), at most kSoftmaxTile of them: fewer are kept from the forward
// to the backward part (6 B S D operations), more are made twice (8 B S D). Bytes moved: features,
// rows and their gradients once; rows that are updated, or made logits of again, twice. Memory:
// softmax_layout says; it holds the tile, two copies of the features, and what groups of classes
// sum up of d_features.
#pragma once

#include <cstdint>

#include "kernels/worker.h"

namespace edge {

constexpr Index kSoftmaxTile = 256 * 1024;  // floats: 32 examples of 8,192 classes
constexpr Index kSoftmaxUnit = 48;   // classes whose largest logit is found together, at most
constexpr Index kSoftmaxGroups = 8;  // what threads share and is added up at the end, at most

// Where everything lies, and how many phases there are: softmax_layout makes it from shapes alone,
// so that neither instruction set nor threads change the results' order of summation.
struct SoftmaxLayout {
  Index batch_pitch = 0, width_pitch = 0;  // rounded up to kMaxTileColumns
  Index unit = 0, units = 0;               // classes of a unit, the last may have fewer
  Index unit_group = 0, groups = 0;        // units of a group, the last may have fewer
  Index slot_count = 0;                    // one for a unit where logits stay, else for a group
  bool keep = false;                       // logits stay
  Index own_floats = 0, shared_floats = 0, phases = 4;
  Index own_logits = 0;  // in a worker's own part
  // In the shared part:
  Index by_width = 0;    // features as [panel][D][columns]
  Index by_example = 0;  // features as [panel][B][columns]
  Index rows_sums = 0;   // (groups, batch_pitch, width_pitch): rows, weighted by exponentials
  Index logits = 0;      // (S, batch_pitch), where they stay
  Index slots = 0;       // (slot_count, batch_pitch): first peaks, then factors of exponentials
  Index group_sums = 0;  // (groups, batch_pitch)
  // (batch_pitch)
  Index peaks = 0, factors = 0, targets = 0, own_gradients = 0, losses = 0, lengths = 0, labels = 0;
};

SoftmaxLayout softmax_layout(Index batch, Index width, Index classes);

struct SampledSoftmaxArgs {
  const float* features = nullptr;
  const float* rows = nullptr;
  const std::int32_t* classes = nullptr;
  const std::int32_t* labels = nullptr;
  const float* correction = nullptr;  // (S), or null: correction_of_all
  float correction_of_all = 0.0F;
  float* loss = nullptr;
  float* d_features = nullptr;
  float* d_rows = nullptr;
  float* updated = nullptr;
  float lr = 0.0F;
  float scale = 0.0F;  // 0: dot product
  Index batch = 0, width = 0, count = 0, positives = 0;
  Index table = 0;  // rows there are; only where classes name them
  Index own = 0;    // leading classes that count only for the examples they are the label of
  Index first = 0, all_labels = 0;
  SoftmaxLayout layout;
};

}  // namespace edge
