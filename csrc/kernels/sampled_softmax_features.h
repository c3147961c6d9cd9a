// The examples' side of sampled_softmax: features rearranged for its products. Internal linkage.
#pragma once

#include "kernels/lanes.h"
#include "kernels/sampled_softmax.h"
#include "kernels/sampled_softmax_rows.h"
#include "kernels/tile.h"

namespace edge {
namespace EDGE_ISA {

static std::int32_t* labels_of(const SampledSoftmaxArgs& args, const Worker& worker) {
  return reinterpret_cast<std::int32_t*>(worker.shared + args.layout.labels);
}

static Index labelled_of(const SampledSoftmaxArgs& args) {
  Index labelled = 0;
  for (Index i = 0; i < args.all_labels; ++i)
    labelled += args.labels[i] >= 0 && args.labels[i] < args.count ? 1 : 0;
  return labelled;
}

// to[k][b] = from[b][k], squares of a vector's width in registers.
static void transpose_panel(const float* from, Index pitch, Index width, float* to) {
  for (Index v = 0; v < kPanelVectors; ++v) {
    for (Index k = 0; k < width; k += kLanes) {
      Vec square[kLanes];
      for (Index i = 0; i < kLanes; ++i) square[i] = load(from + (v * kLanes + i) * pitch + k);
      transpose_square(square);
      for (Index i = 0; i < smaller(kLanes, width - k); ++i)
        store(to + (k + i) * kTileColumns + v * kLanes, square[i]);
    }
  }
}

// An example's features into one padded row; zeros where it has no label.
static void example_row(const SampledSoftmaxArgs& args, const Worker& worker, Index b, float* to) {
  const SoftmaxLayout& at = args.layout;
  const bool counts = b < args.batch && labels_of(args, worker)[b] >= 0;
  const float* from = args.features + b * args.width;
  if (counts) copy_run(from, args.width, to);
  for (Index k = counts ? args.width : 0; k < at.width_pitch; ++k) to[k] = 0.0F;
  if (args.scale == 0.0F) return;
  const float inverse = inverse_length(to, at.width_pitch);
  worker.shared[at.lengths + b] = inverse;
  for (Index k = 0; k < at.width_pitch; ++k) to[k] *= inverse;
}

// Phase 0 of sampled_softmax: labels, and features in both orders.
static void place_features(const SampledSoftmaxArgs& args, const Worker& worker) {
  const SoftmaxLayout& at = args.layout;
  const Share share = share_of(ceil_div(args.batch, kTileColumns), worker);
  std::int32_t* labels = labels_of(args, worker);
  for (Index panel = share.begin; panel < share.end; ++panel) {
    const Index first = panel * kTileColumns;
    for (Index b = first; b < first + kTileColumns; ++b) {
      const std::int32_t label = b < args.batch ? args.labels[args.first + b] : -1;
      labels[b] = label < args.count ? label : -1;
      float* row = worker.scratch + (b - first) * at.width_pitch;
      example_row(args, worker, b, row);
      for (Index k = 0; k < args.width && b < args.batch; k += kTileColumns) {
        float* to = worker.shared + at.by_example + k * args.batch + b * kTileColumns;
        for (Index v = 0; v < kTileColumns; v += kLanes) store(to + v, load(row + k + v));
      }
    }
    transpose_panel(worker.scratch, at.width_pitch, args.width,
                    worker.shared + at.by_width + first * args.width);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
