#include "kernels/sampled_softmax.h"

#include <math.h>

#include "kernels/sampled_softmax_features.h"
#include "kernels/sampled_softmax_rows.h"
#include "kernels/tile.h"
#include "kernels/vmath.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using Args = SampledSoftmaxArgs;

constexpr float kLowest = -3.40282347e38F;  // of a peak: -infinity minus itself would be NaN

// e^x for x <= 0, 0 where that is subnormal.
EDGE_INLINE Vec exp_falling(Vec x) { return select(x < splat(-87.0F), Vec{}, exp_normal(x)); }

// ---- phase 1: logits, their peaks, and the sums of what is left below those --------------------

struct Unit {
  Index begin, count;  // classes
};

Unit unit_of(const Args& args, Index unit) {
  const Index begin = unit * kSoftmaxUnit;
  return {begin, smaller(kSoftmaxUnit, args.count - begin)};
}

// z[j][b] for the examples of a panel, corrections not yet added.
void multiply_rows(const Args& args, const Worker& worker, Unit unit, const float* rows,
                   Index panel, float* z, Index pitch) {
  const SoftmaxLayout& at = args.layout;
  const float* features = worker.shared + at.by_width + panel * kTileColumns * args.width;
  for (Index tile = 0; tile < row_tiles(unit.count); ++tile) {
    const Index j = row_tile_begin(unit.count, tile);
    tile_rows<kPanelVectors>(row_tile_begin(unit.count, tile + 1) - j, rows + j * at.width_pitch,
                             at.width_pitch, StridedTaps{1, kTileColumns}, args.width, features,
                             z + j * pitch, pitch);
  }
}

// What is added to the logits of a unit's classes.
void corrections_of(const Args& args, Unit unit, float* to) {
  for (Index r = 0; r < unit.count; ++r) {
    const float negative =
        args.correction != nullptr ? args.correction[unit.begin + r] : args.correction_of_all;
    to[r] = unit.begin + r < args.positives ? 0.0F : negative;
  }
}

// Of the first classes, leaves out all that are not an example's own.
void hide(const Args& args, const Worker& worker, Unit unit, Index panel, float* z, Index pitch) {
  const std::int32_t* labels = labels_of(args, worker) + panel * kTileColumns;
  for (Index r = 0; r < smaller(unit.count, args.own - unit.begin); ++r) {
    for (Index i = 0; i < kTileColumns; ++i)
      z[r * pitch + i] = labels[i] == unit.begin + r ? z[r * pitch + i] : -__builtin_inff();
  }
}

// Raises the peaks to those of corrected logits.
void raise_peaks(Index count, const float* corrections, const float* z, Index pitch, float* peaks) {
  Vec top[kPanelVectors];
  EDGE_UNROLL
  for (Index v = 0; v < kPanelVectors; ++v) top[v] = load(peaks + v * kLanes);
  for (Index r = 0; r < count; ++r) {
    EDGE_UNROLL
    for (Index v = 0; v < kPanelVectors; ++v) {
      const Vec x = load(z + r * pitch + v * kLanes) + corrections[r];
      top[v] = x > top[v] ? x : top[v];
    }
  }
  EDGE_UNROLL
  for (Index v = 0; v < kPanelVectors; ++v) store(peaks + v * kLanes, top[v]);
}

// z <- e^(z + correction - peak); what they add up to joins sums, which were relative to `before`.
void exponentials(Index count, const float* corrections, float* z, Index pitch, const float* before,
                  const float* peaks, float* sums) {
  Vec peak[kPanelVectors], sum[kPanelVectors];
  EDGE_UNROLL
  for (Index v = 0; v < kPanelVectors; ++v) {
    peak[v] = load(peaks + v * kLanes);
    sum[v] = load(sums + v * kLanes) * exp_falling(load(before + v * kLanes) - peak[v]);
  }
  for (Index r = 0; r < count; ++r) {
    EDGE_UNROLL
    for (Index v = 0; v < kPanelVectors; ++v) {
      float* at = z + r * pitch + v * kLanes;
      const Vec e = exp_falling((load(at) + corrections[r]) - peak[v]);
      store(at, e);
      sum[v] += e;
    }
  }
  EDGE_UNROLL
  for (Index v = 0; v < kPanelVectors; ++v) store(sums + v * kLanes, sum[v]);
}

// The logits of the labels, of which each lies in one unit.
void note_targets(const Args& args, const Worker& worker, Unit unit, Index panel,
                  const float* corrections, const float* z, Index pitch) {
  const std::int32_t* labels = labels_of(args, worker);
  for (Index i = 0; i < kTileColumns; ++i) {
    const Index b = panel * kTileColumns + i, r = labels[b] - unit.begin;
    if (r >= 0 && r < unit.count)
      worker.shared[args.layout.targets + b] = z[r * pitch + i] + corrections[r];
  }
}

// The rows of a unit, dense with width_pitch. Where one block holds all, they stay for later.
const float* unit_rows(const Args& args, const Worker& worker, Unit unit) {
  const SoftmaxLayout& at = args.layout;
  float* rows =
      at.blocks > 1 ? worker.scratch : worker.shared + at.rows + unit.begin * at.width_pitch;
  float* factors = worker.shared + at.row_factors + (at.blocks > 1 ? 0 : unit.begin);
  return gather_rows(args, unit.begin, unit.count, rows, at.blocks > 1 ? nullptr : factors);
}

void sum_group(const Args& args, const Worker& worker, Index group) {
  const SoftmaxLayout& at = args.layout;
  float* peaks = worker.shared + at.group_peaks + group * at.batch_pitch;
  float* sums = worker.shared + at.group_sums + group * at.batch_pitch;
  const Index panels = ceil_div(args.batch, kTileColumns);
  for (Index i = 0; i < panels * kTileColumns; ++i) {
    peaks[i] = kLowest;
    sums[i] = 0.0F;
  }
  const Index end = smaller(at.units, (group + 1) * at.unit_group);
  for (Index number = group * at.unit_group; number < end; ++number) {
    const Unit unit = unit_of(args, number);
    const float* rows = unit_rows(args, worker, unit);
    float corrections[kSoftmaxUnit];
    corrections_of(args, unit, corrections);
    for (Index panel = 0; panel < panels; ++panel) {
      const Index b = panel * kTileColumns;
      float* z = at.keep ? worker.shared + at.logits + unit.begin * at.batch_pitch + b
                         : worker.scratch + kSoftmaxUnit * at.width_pitch;
      const Index pitch = at.keep ? at.batch_pitch : kTileColumns;
      multiply_rows(args, worker, unit, rows, panel, z, pitch);
      float before[kTileColumns];
      for (Index v = 0; v < kTileColumns; v += kLanes) store(before + v, load(peaks + b + v));
      hide(args, worker, unit, panel, z, pitch);
      note_targets(args, worker, unit, panel, corrections, z, pitch);
      raise_peaks(unit.count, corrections, z, pitch, peaks + b);
      exponentials(unit.count, corrections, z, pitch, before, peaks + b, sums + b);
    }
  }
}

// ---- phase 2: from all groups to each example's loss -------------------------------------------

void finish_examples(const Args& args, const Worker& worker) {
  const SoftmaxLayout& at = args.layout;
  const Share share = share_of(ceil_div(args.batch, kLanes), worker);
  const Index labelled = labelled_of(args);
  const float weight = labelled == 0 ? 0.0F : 1.0F / static_cast<float>(labelled);
  for (Index b = share.begin * kLanes; b < share.end * kLanes; b += kLanes) {
    const float* peaks = worker.shared + at.group_peaks + b;
    const float* sums = worker.shared + at.group_sums + b;
    Vec peak = splat(kLowest), sum = {};
    for (Index g = 0; g < at.groups; ++g) {
      const Vec of_group = load(peaks + g * at.batch_pitch);
      peak = select(of_group > peak, of_group, peak);
    }
    for (Index g = 0; g < at.groups; ++g)
      sum += load(sums + g * at.batch_pitch) * exp_falling(load(peaks + g * at.batch_pitch) - peak);
    store(worker.shared + at.peaks + b, peak);
    float each[kLanes], top[kLanes];
    store(each, sum);
    store(top, peak);
    for (Index i = 0; i < kLanes; ++i) {
      const bool counts = b + i < args.batch && labels_of(args, worker)[b + i] >= 0;
      worker.shared[at.factors + b + i] = counts ? weight / each[i] : 0.0F;
      // In this order: a large peak would drown the sum's logarithm.
      worker.shared[at.losses + b + i] =
          counts ? (top[i] - worker.shared[at.targets + b + i]) + ::logf(each[i]) : 0.0F;
    }
  }
}

// ---- phases 3, 5, ...: G of one block, in place of its logits ----------------------------------

// Kept are exponentials below their unit's peak, made again are logits.
void scale_unit(const Args& args, const Worker& worker, Index number, const float* corrections,
                Index panel, float* z) {
  const SoftmaxLayout& at = args.layout;
  const Unit unit = unit_of(args, number);
  const Index b = panel * kTileColumns;
  const float* kept = worker.shared + at.group_peaks + number * at.batch_pitch + b;
  for (Index v = 0; v < kTileColumns; v += kLanes) {
    const Vec peak = load(worker.shared + at.peaks + b + v);
    const Vec factor = load(worker.shared + at.factors + b + v);
    const Vec of_kept = at.keep ? factor * exp_falling(load(kept + v) - peak) : Vec{};
    for (Index r = 0; r < unit.count && at.keep; ++r) {
      float* to = z + r * at.batch_pitch + v;
      store(to, load(to) * of_kept);
    }
    for (Index r = 0; r < unit.count && !at.keep; ++r) {
      float* to = z + r * at.batch_pitch + v;
      store(to, factor * exp_falling((load(to) + corrections[r]) - peak));
    }
  }
}

// G where the label is: p - 1.
void subtract_targets(const Args& args, const Worker& worker, Unit unit, Index panel, float weight,
                      float* z) {
  const std::int32_t* labels = labels_of(args, worker) + panel * kTileColumns;
  for (Index i = 0; i < kTileColumns; ++i) {
    const Index r = labels[i] - unit.begin;
    if (r >= 0 && r < unit.count) z[r * args.layout.batch_pitch + i] -= weight;
  }
}

void logit_gradients(const Args& args, const Worker& worker, Index block) {
  const SoftmaxLayout& at = args.layout;
  const Index begin = block * at.block, end = smaller(args.count, begin + at.block);
  const Index first = begin / kSoftmaxUnit, panels = ceil_div(args.batch, kTileColumns);
  const Share share = share_of(ceil_div(end, kSoftmaxUnit) - first, worker);
  const Index labelled = labelled_of(args);
  const float weight = labelled == 0 ? 0.0F : 1.0F / static_cast<float>(labelled);
  for (Index number = first + share.begin; number < first + share.end; ++number) {
    const Unit unit = unit_of(args, number);
    float* rows = worker.shared + at.rows + (unit.begin - begin) * at.width_pitch;
    float* factors = worker.shared + at.row_factors + (unit.begin - begin);
    if (at.blocks > 1) gather_rows(args, unit.begin, unit.count, rows, factors);
    float corrections[kSoftmaxUnit];
    corrections_of(args, unit, corrections);
    for (Index panel = 0; panel < panels; ++panel) {
      float* z = worker.shared + at.logits + panel * kTileColumns +
                 (unit.begin - (at.keep ? 0 : begin)) * at.batch_pitch;
      if (!at.keep) {
        multiply_rows(args, worker, unit, rows, panel, z, at.batch_pitch);
        hide(args, worker, unit, panel, z, at.batch_pitch);
      }
      scale_unit(args, worker, number, corrections, panel, z);
      subtract_targets(args, worker, unit, panel, weight, z);
    }
  }
}

// ---- phases 4, 6, ...: both products with G ----------------------------------------------------

// d_features += G^T rows over one block, for a worker's tiles of it.
void add_to_features(const Args& args, const Worker& worker, Index count, const float* g) {
  const SoftmaxLayout& at = args.layout;
  const float* rows = worker.shared + at.rows;
  const StridedTaps taps{at.batch_pitch, at.width_pitch};
  const Index tiles = row_tiles(args.batch), panels = ceil_div(args.width, kTileColumns);
  const Share share = share_of(tiles * panels, worker);
  for (Index i = share.begin; i < share.end; ++i) {
    const Index b = row_tile_begin(args.batch, i % tiles), k = i / tiles * kTileColumns;
    float* sums = worker.shared + at.d_features + b * at.width_pitch + k;
    tile_rows<kPanelVectors, true>(row_tile_begin(args.batch, i % tiles + 1) - b, g + b, 1, taps,
                                   count, rows + k, sums, at.width_pitch);
  }
}

// d_rows = G features for a worker's tiles of one block, and what becomes of them.
void make_row_gradients(const Args& args, const Worker& worker, Index begin, Index count,
                        const float* g) {
  const SoftmaxLayout& at = args.layout;
  float* sums = worker.scratch;
  const Share share = share_of(row_tiles(count), worker);
  for (Index tile = share.begin; tile < share.end; ++tile) {
    const Index j = row_tile_begin(count, tile), rows = row_tile_begin(count, tile + 1) - j;
    for (Index r = j; r < j + rows && args.updated != nullptr; ++r) ask_for(args, begin + r);
    for (Index k = 0; k < args.width; k += kTileColumns) {
      tile_rows<kPanelVectors>(
          rows, g + j * at.batch_pitch, at.batch_pitch, StridedTaps{1, kTileColumns}, args.batch,
          worker.shared + at.by_example + k * args.batch, sums + k, at.width_pitch);
    }
    for (Index r = j; r < j + rows; ++r) {
      float* sum = sums + (r - j) * at.width_pitch;
      if (args.scale != 0.0F) {
        across(sum, worker.shared + at.rows + r * at.width_pitch, args.width,
               worker.shared[at.row_factors + r], 1.0F / (args.scale * args.scale));
      }
      finish_row(args, begin + r, sum);
    }
  }
}

void multiply_gradients(const Args& args, const Worker& worker, Index block) {
  const SoftmaxLayout& at = args.layout;
  const Index begin = block * at.block, count = smaller(args.count, begin + at.block) - begin;
  const float* g = worker.shared + at.logits + (at.keep ? begin * at.batch_pitch : 0);
  if (args.d_features != nullptr) add_to_features(args, worker, count, g);
  if (args.d_rows != nullptr || args.updated != nullptr)
    make_row_gradients(args, worker, begin, count, g);
}

// ---- the last phase ----------------------------------------------------------------------------

void finish_features(const Args& args, const Worker& worker) {
  const SoftmaxLayout& at = args.layout;
  const Share share = share_of(args.batch, worker);
  for (Index b = share.begin; b < share.end && args.d_features != nullptr; ++b) {
    float* sum = worker.shared + at.d_features + b * at.width_pitch;
    if (args.scale != 0.0F) {
      example_row(args, worker, b, worker.scratch);
      across(sum, worker.scratch, args.width, worker.shared[at.lengths + b], 1.0F);
    }
    for (Index k = 0; k < args.width; ++k) args.d_features[b * args.width + k] = sum[k];
  }
  if (worker.index != 0) return;
  double loss = 0.0;
  for (Index b = 0; b < args.batch; ++b) loss += static_cast<double>(worker.shared[at.losses + b]);
  const Index labelled = labelled_of(args);
  *args.loss = labelled == 0 ? 0.0F : static_cast<float>(loss / static_cast<double>(labelled));
}

}  // namespace

void sampled_softmax(const SampledSoftmaxArgs& args, const Worker& worker) {
  const SoftmaxLayout& at = args.layout;
  if (worker.phase == 0) return place_features(args, worker);
  if (worker.phase == 1) {
    const Share share = share_of(at.groups, worker);
    for (Index group = share.begin; group < share.end; ++group) sum_group(args, worker, group);
    return;
  }
  if (worker.phase == 2) return finish_examples(args, worker);
  if (worker.phase == at.phases - 1) return finish_features(args, worker);
  const Index block = (worker.phase - 3) / 2;
  if (worker.phase % 2 == 1) return logit_gradients(args, worker, block);
  multiply_gradients(args, worker, block);
}

}  // namespace EDGE_ISA
}  // namespace edge
