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

// ---- phase 1: exponentials, what they add up to, and the rows' mean under them ------------------

struct Unit {
  Index begin, count;  // classes
};

Unit unit_of(const Args& args, Index number) {
  const Index begin = number * args.layout.unit;
  return {begin, smaller(args.layout.unit, args.count - begin)};
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

// What is added to the logit of a class.
EDGE_INLINE float correction_of(const Args& args, Index j) {
  if (j < args.positives) return 0.0F;
  return args.correction != nullptr ? args.correction[j] : args.correction_of_all;
}

// Of the first classes, leaves out all that are not an example's own.
void hide(const Args& args, const Worker& worker, Unit unit, Index panel, float* z, Index pitch) {
  const std::int32_t* labels = labels_of(args, worker) + panel * kTileColumns;
  for (Index r = 0; r < smaller(unit.count, args.own - unit.begin); ++r) {
    for (Index i = 0; i < kTileColumns; ++i)
      z[r * pitch + i] = labels[i] == unit.begin + r ? z[r * pitch + i] : -__builtin_inff();
  }
}

// The largest corrected logit so far.
void raise_peaks(Index count, const float* corrections, const float* z, Index pitch,
                 const float* before, float* peaks) {
  Vec top[kPanelVectors];
  EDGE_UNROLL
  for (Index v = 0; v < kPanelVectors; ++v) top[v] = load(before + v * kLanes);
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

// Calls visit(example of the panel, class of the unit) for every label there. Most units have none.
template <class Visit>
EDGE_INLINE void each_target(const Args& args, const Worker& worker, Unit unit, Index panel,
                             Visit visit) {
  const std::int32_t* labels = labels_of(args, worker) + panel * kTileColumns;
  const auto begin = static_cast<std::uint32_t>(unit.begin);
  const auto count = static_cast<std::uint32_t>(unit.count);
  std::uint32_t found = 0;
  for (Index i = 0; i < kTileColumns; ++i)
    found |= static_cast<std::uint32_t>(labels[i]) - begin < count ? 1U : 0U;
  for (Index i = 0; found != 0 && i < kTileColumns; ++i) {
    const Index r = labels[i] - unit.begin;
    if (r >= 0 && r < unit.count) visit(i, r);
  }
}

// z <- e^(z + correction - peak); returned in sums is what they add up to and what was there.
void exponentials(Index count, const float* corrections, float* z, Index pitch, const float* peaks,
                  float* sums) {
  Vec peak[kPanelVectors], sum[kPanelVectors];
  EDGE_UNROLL
  for (Index v = 0; v < kPanelVectors; ++v) {
    peak[v] = load(peaks + v * kLanes);
    sum[v] = load(sums + v * kLanes);
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

// What was summed below lower peaks. Few examples find a higher one in a unit.
void lower(const Args& args, Index examples, const float* before, const float* peaks, float* sums,
           float* rows_sums) {
  const SoftmaxLayout& at = args.layout;
  float factors[kTileColumns];
  for (Index v = 0; v < kTileColumns; v += kLanes) {
    const Vec factor = exp_falling(load(before + v) - load(peaks + v));
    store(factors + v, factor);
    store(sums + v, load(sums + v) * factor);
  }
  if (args.d_features == nullptr) return;
  for (Index i = 0; i < examples; ++i) {
    if (factors[i] == 1.0F) continue;
    float* row = rows_sums + i * at.width_pitch;
    for (Index k = 0; k < at.width_pitch; k += kLanes) store(row + k, load(row + k) * factors[i]);
  }
}

// rows_sums (+)= e^T rows, for the examples of a panel and the classes of a unit.
template <bool ADD>
void add_rows(const Args& args, Unit unit, const float* rows, const float* e, Index pitch,
              Index examples, float* rows_sums) {
  const SoftmaxLayout& at = args.layout;
  const StridedTaps taps{pitch, at.width_pitch};
  for (Index k = 0; k < args.width; k += kTileColumns) {
    for (Index tile = 0; tile < row_tiles(examples); ++tile) {
      const Index i = row_tile_begin(examples, tile);
      tile_rows<kPanelVectors, ADD>(row_tile_begin(examples, tile + 1) - i, e + i, 1, taps,
                                    unit.count, rows + k, rows_sums + i * at.width_pitch + k,
                                    at.width_pitch);
    }
  }
}

// Where the peaks that a unit's exponentials lie below are kept, one for each example.
float* slot_of(const Args& args, const Worker& worker, Index number) {
  const Index slot = args.layout.keep ? number : number / args.layout.unit_group;
  return worker.shared + args.layout.slots + slot * args.layout.batch_pitch;
}

// One unit after those of its group before it. Exponentials of an example's own label are left out:
// its gradient is p - 1, minus the sum of the others, and would drown in the difference.
void sum_unit(const Args& args, const Worker& worker, Index number, bool first, const float* rows,
              const float* corrections, Index panel) {
  const SoftmaxLayout& at = args.layout;
  const Unit unit = unit_of(args, number);
  const Index b = panel * kTileColumns, group = number / at.unit_group;
  const Index examples = smaller(kTileColumns, args.batch - b);
  float* z = at.keep ? worker.shared + at.logits + unit.begin * at.batch_pitch + b
                     : worker.scratch + at.own_logits;
  const Index pitch = at.keep ? at.batch_pitch : kTileColumns;
  float* peaks = slot_of(args, worker, number) + b;
  float* sums = worker.shared + at.group_sums + group * at.batch_pitch + b;
  float* rows_sums = worker.shared + at.rows_sums + (group * at.batch_pitch + b) * at.width_pitch;
  float before[kTileColumns];
  for (Index v = 0; v < kTileColumns; v += kLanes) {
    store(before + v, first ? splat(kLowest) : load(slot_of(args, worker, number - 1) + b + v));
    if (first) store(sums + v, Vec{});
  }
  multiply_rows(args, worker, unit, rows, panel, z, pitch);
  hide(args, worker, unit, panel, z, pitch);
  raise_peaks(unit.count, corrections, z, pitch, before, peaks);
  each_target(args, worker, unit, panel, [&](Index i, Index r) {
    worker.shared[at.targets + b + i] = z[r * pitch + i] + corrections[r];
    z[r * pitch + i] = -__builtin_inff();
  });
  if (!first) lower(args, examples, before, peaks, sums, rows_sums);
  exponentials(unit.count, corrections, z, pitch, peaks, sums);
  if (args.d_features == nullptr) return;
  (first ? add_rows<false> : add_rows<true>)(args, unit, rows, z, pitch, examples, rows_sums);
}

// A worker's share of all groups' panels. Rows are gathered once for those of one group.
void sum_groups(const Args& args, const Worker& worker) {
  const SoftmaxLayout& at = args.layout;
  const Index panels = ceil_div(args.batch, kTileColumns);
  const Share share = share_of(at.groups * panels, worker);
  for (Index item = share.begin, next = 0; item < share.end; item = next) {
    const Index group = item / panels, begin = item % panels;
    next = smaller(share.end, (group + 1) * panels);
    const Index first = group * at.unit_group;
    for (Index number = first; number < smaller(at.units, first + at.unit_group); ++number) {
      const Unit unit = unit_of(args, number);
      gather_rows(args, unit.begin, unit.count, worker.scratch, nullptr);
      float corrections[kSoftmaxUnit];
      for (Index r = 0; r < unit.count; ++r) corrections[r] = correction_of(args, unit.begin + r);
      for (Index panel = begin; panel < begin + next - item; ++panel)
        sum_unit(args, worker, number, number == first, worker.scratch, corrections, panel);
    }
  }
}

// ---- phase 2: from all groups to each example's loss and gradient -------------------------------

Index last_unit(const Args& args, Index group) {
  return smaller(args.layout.units, (group + 1) * args.layout.unit_group) - 1;
}

// d loss / d f_b, where G is known but for its own label's: that of a class is p / labelled.
void finish_features(const Args& args, const Worker& worker, Index b) {
  const SoftmaxLayout& at = args.layout;
  float* to = args.d_features + b * args.width;
  const std::int32_t label = labels_of(args, worker)[b];
  if (label < 0) {
    for (Index k = 0; k < args.width; ++k) to[k] = 0.0F;
    return;
  }
  const bool direct = args.scale == 0.0F && args.width % kLanes == 0 && !left_out(args, label);
  float *row = worker.scratch, *sum = direct ? to : row + at.width_pitch;
  if (!direct) gather_rows(args, label, 1, row, nullptr);
  const float* own_row = direct ? row_of(args, label) : row;
  const float own = worker.shared[at.own_gradients + b];
  const Index group = at.batch_pitch * at.width_pitch;
  const float* sums = worker.shared + at.rows_sums + b * at.width_pitch;
  float factors[kSoftmaxGroups];
  for (Index g = 0; g < at.groups; ++g) factors[g] = slot_of(args, worker, last_unit(args, g))[b];
  for (Index k = 0; k < args.width; k += kLanes) {
    Vec all = load(own_row + k) * own;
    for (Index g = 0; g < at.groups; ++g) all += load(sums + g * group + k) * factors[g];
    store(sum + k, all);
  }
  if (args.scale != 0.0F) {
    example_row(args, worker, b, row);
    across(sum, row, args.width, worker.shared[at.lengths + b], 1.0F);
  }
  if (!direct) copy_run(sum, args.width, to);
}

// From peaks and sums to the loss and the factors of exponentials in G, for a vector of examples.
void finish_sums(const Args& args, const Worker& worker, Index b, float weight) {
  const SoftmaxLayout& at = args.layout;
  Vec peak = splat(kLowest), others = {};
  for (Index g = 0; g < at.groups; ++g) {
    const Vec of_group = load(slot_of(args, worker, last_unit(args, g)) + b);
    peak = select(of_group > peak, of_group, peak);
  }
  for (Index g = 0; g < at.groups; ++g) {
    const Vec of_group = load(slot_of(args, worker, last_unit(args, g)) + b);
    others +=
        load(worker.shared + at.group_sums + g * at.batch_pitch + b) * exp_falling(of_group - peak);
  }
  const Vec below = peak - load(worker.shared + at.targets + b);
  float other[kLanes], own[kLanes], distance[kLanes];
  store(other, others);
  store(own, exp_falling(-below));
  store(distance, below);
  for (Index i = 0; i < kLanes; ++i) {
    const bool counts = b + i < args.batch && labels_of(args, worker)[b + i] >= 0;
    const float factor = counts ? weight / (other[i] + own[i]) : 0.0F;
    worker.shared[at.factors + b + i] = factor;
    worker.shared[at.own_gradients + b + i] = counts ? -other[i] * factor : 0.0F;
    // In this order: a large peak would drown the logarithm, and one what is added to it.
    worker.shared[at.losses + b + i] =
        counts ? distance[i] + ::log1pf(other[i] + (own[i] - 1.0F)) : 0.0F;
  }
  store(worker.shared + at.peaks + b, peak);
  const Vec factor = load(worker.shared + at.factors + b);
  for (Index s = 0; s < at.slot_count; ++s) {
    float* slot = worker.shared + at.slots + s * at.batch_pitch + b;
    store(slot, factor * exp_falling(load(slot) - peak));
  }
}

void finish_examples(const Args& args, const Worker& worker) {
  const Share share = share_of(ceil_div(args.batch, kLanes), worker);
  const Index labelled = labelled_of(args);
  const float weight = labelled == 0 ? 0.0F : 1.0F / static_cast<float>(labelled);
  for (Index b = share.begin * kLanes; b < share.end * kLanes; b += kLanes) {
    finish_sums(args, worker, b, weight);
    const Index end = smaller(b + kLanes, args.batch);
    for (Index i = b; i < end && args.d_features != nullptr; ++i) finish_features(args, worker, i);
  }
}

// ---- phase 3: G of a few classes at a time, and its product with the features
// --------------------

// Exponentials that were kept become gradients.
void scale_kept(const Args& args, const Worker& worker, Unit few, float* z) {
  const SoftmaxLayout& at = args.layout;
  Index unit = few.begin / at.unit, next = (unit + 1) * at.unit - few.begin;
  for (Index begin = 0; begin < few.count; begin = next, next += at.unit, ++unit) {
    const float* factors = slot_of(args, worker, unit);
    for (Index b = 0; b < args.batch; b += kLanes) {
      const Vec factor = load(factors + b);
      for (Index r = begin; r < smaller(few.count, next); ++r) {
        float* to = z + r * at.batch_pitch + b;
        store(to, load(to) * factor);
      }
    }
  }
}

// Gradients from logits made again.
void make_again(const Args& args, const Worker& worker, Unit few, const float* rows, Index panel,
                float* z) {
  const SoftmaxLayout& at = args.layout;
  multiply_rows(args, worker, few, rows, panel, z, at.batch_pitch);
  hide(args, worker, few, panel, z, at.batch_pitch);
  for (Index v = 0; v < kTileColumns; v += kLanes) {
    const Vec peak = load(worker.shared + at.peaks + panel * kTileColumns + v);
    const Vec factor = load(worker.shared + at.factors + panel * kTileColumns + v);
    for (Index r = 0; r < few.count; ++r) {
      float* to = z + r * at.batch_pitch + v;
      const Vec logit = load(to) + correction_of(args, few.begin + r);
      store(to, factor * exp_falling(logit - peak));
    }
  }
}

// G of a tile's classes as (class, batch_pitch).
float* logit_gradients(const Args& args, const Worker& worker, Unit few, const float* rows) {
  const SoftmaxLayout& at = args.layout;
  float* z = at.keep ? worker.shared + at.logits + few.begin * at.batch_pitch
                     : worker.scratch + at.own_logits;
  if (at.keep) scale_kept(args, worker, few, z);
  for (Index panel = 0; panel < ceil_div(args.batch, kTileColumns); ++panel) {
    const Index b = panel * kTileColumns;
    if (!at.keep) make_again(args, worker, few, rows, panel, z + b);
    each_target(args, worker, few, panel, [&](Index i, Index r) {
      z[r * at.batch_pitch + b + i] = worker.shared[at.own_gradients + b + i];
    });
  }
  return z;
}

// d_rows of a tile's classes, and what becomes of them.
void finish_tile(const Args& args, const Worker& worker, Unit few) {
  const SoftmaxLayout& at = args.layout;
  float *rows = worker.scratch, *sums = rows + kTileRows * at.width_pitch;
  float factors[kTileRows];
  if (!at.keep || args.scale != 0.0F) gather_rows(args, few.begin, few.count, rows, factors);
  const float* g = logit_gradients(args, worker, few, rows);
  const bool moves = moves_directly(args, few.begin, few.count);
  Index done = 0;
  for (; moves && done + kTileColumns <= args.width; done += kTileColumns) {
    ask_for_next(args, few.begin, few.count, done);
    (few.count == kTileRows
         ? move_tile<kTileRows>
         : move_tile<kTileRows - 1>)(args, few.begin, g,
                                     worker.shared + at.by_example + done * args.batch, done);
  }
  for (Index k = done; k < args.width; k += kTileColumns) {
    tile_rows<kPanelVectors>(few.count, g, at.batch_pitch, StridedTaps{1, kTileColumns}, args.batch,
                             worker.shared + at.by_example + k * args.batch, sums + k,
                             at.width_pitch);
  }
  for (Index r = 0; r < few.count && done < args.width; ++r) {
    float* sum = sums + r * at.width_pitch;
    if (args.scale != 0.0F) {
      across(sum, rows + r * at.width_pitch, args.width, factors[r],
             1.0F / (args.scale * args.scale));
    }
    finish_row(args, few.begin + r, sum, done);
  }
}

void finish_rows(const Args& args, const Worker& worker) {
  const Share share = share_of(row_tiles(args.count), worker);
  for (Index tile = share.begin; tile < share.end; ++tile) {
    const Index j = row_tile_begin(args.count, tile);
    finish_tile(args, worker, {j, row_tile_begin(args.count, tile + 1) - j});
  }
}

void finish_loss(const Args& args, const Worker& worker) {
  double loss = 0.0;
  for (Index b = 0; b < args.batch; ++b)
    loss += static_cast<double>(worker.shared[args.layout.losses + b]);
  const Index labelled = labelled_of(args);
  *args.loss = labelled == 0 ? 0.0F : static_cast<float>(loss / static_cast<double>(labelled));
}

}  // namespace

void sampled_softmax(const SampledSoftmaxArgs& args, const Worker& worker) {
  if (worker.phase == 0) return place_features(args, worker);
  if (worker.phase == 1) return sum_groups(args, worker);
  if (worker.phase == 2) return finish_examples(args, worker);
  if (worker.index == 0) finish_loss(args, worker);
  if (args.d_rows != nullptr || args.updated != nullptr) finish_rows(args, worker);
}

}  // namespace EDGE_ISA
}  // namespace edge
