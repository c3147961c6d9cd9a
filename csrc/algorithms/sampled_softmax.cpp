#include "algorithms/sampled_softmax.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/gemm.h"

namespace edge {

namespace {

// Of rows that are copied once for both parts, and of a block of them where they are copied twice:
// 512 and 256 KiB, which a second-level cache holds beside the logits.
constexpr Index kMostRowFloats = 128 * 1024, kBlockFloats = 64 * 1024;
constexpr Index kMostGroups = 64;

Index up_to(Index value, Index step) { return (value + step - 1) / step * step; }

// All classes, or as many whole units as fit, at least one.
Index block_of(const SoftmaxLayout& layout, Index classes) {
  const Index logits = layout.keep ? classes : kSoftmaxTile / layout.batch_pitch;
  if (classes <= std::min(logits, kMostRowFloats / layout.width_pitch)) return classes;
  const Index most = std::min(logits, kBlockFloats / layout.width_pitch) / kSoftmaxUnit;
  return std::min(classes, std::max<Index>(1, most) * kSoftmaxUnit);
}

}  // namespace

SoftmaxLayout softmax_layout(Index batch, Index width, Index classes) {
  SoftmaxLayout it;
  it.batch_pitch = up_to(batch, kMaxTileColumns);
  it.width_pitch = up_to(width, kMaxTileColumns);
  it.keep = classes <= kSoftmaxTile / it.batch_pitch;
  it.units = up_to(classes, kSoftmaxUnit) / kSoftmaxUnit;
  it.unit_group = it.keep ? 1 : up_to(it.units, kMostGroups) / kMostGroups;
  it.groups = up_to(it.units, it.unit_group) / it.unit_group;
  it.block = block_of(it, classes);
  it.blocks = up_to(classes, it.block) / it.block;
  it.phases = 4 + 2 * it.blocks;
  // A unit's rows, a panel of its logits, and a tile of gradients.
  it.own_floats = (kSoftmaxUnit + kMaxTileRows) * it.width_pitch + kSoftmaxUnit * kMaxTileColumns;
  Index at = it.own_floats;
  const auto place = [&at](Index floats) {
    const Index begin = at;
    at += up_to(floats, 16);
    return begin;
  };
  it.by_width = place(it.batch_pitch * width);
  it.by_example = place(batch * it.width_pitch);
  it.d_features = place(it.batch_pitch * it.width_pitch);
  it.logits = place((it.keep ? classes : it.block) * it.batch_pitch);
  it.rows = place(it.block * it.width_pitch);
  it.row_factors = place(it.block);
  it.group_peaks = place(it.groups * it.batch_pitch);
  it.group_sums = place(it.groups * it.batch_pitch);
  for (Index* each : {&it.peaks, &it.factors, &it.targets, &it.losses, &it.lengths, &it.labels})
    *each = place(it.batch_pitch);
  it.shared_floats = at;
  return it;
}

namespace {

// Which rows were seen, as places in `classes` plus one: open addressing, at most half full.
class SeenRows {
 public:
  SeenRows(const std::int32_t* classes, Index count, Workspace& workspace) : classes_(classes) {
    while ((Index{1} << bits_) < 2 * count) ++bits_;
    places_ = workspace.block<std::int32_t>(1, std::uint64_t{1} << bits_);
    std::fill_n(places_, std::size_t{1} << bits_, 0);
  }

  // The place where the row of classes[j] is, or where it would go.
  std::int32_t& find(Index j) {
    const auto row = static_cast<std::uint32_t>(classes_[j]);
    const std::uint32_t mask = (std::uint32_t{1} << bits_) - 1;
    std::uint32_t at = (row * 0x9E3779B9U) >> (32 - bits_);
    while (places_[at] != 0 && classes_[places_[at] - 1] != classes_[j]) at = (at + 1) & mask;
    return places_[at];
  }

 private:
  const std::int32_t* classes_;
  std::int32_t* places_ = nullptr;
  int bits_ = 1;
};

[[noreturn]] void twice(std::int32_t row, Index first, Index second) {
  throw std::invalid_argument("classes must be distinct, row " + std::to_string(row) + " is at " +
                              std::to_string(first) + " and " + std::to_string(second));
}

// Corrections with -infinity at the negatives that hit a positive's row.
void leave_out(SampledSoftmaxArgs& args, Index hit, Workspace& workspace, float*& corrections) {
  if (corrections == nullptr) {
    corrections = workspace.block<float>(2, static_cast<std::uint64_t>(args.count));
    if (args.correction != nullptr) {
      std::copy_n(args.correction, args.count, corrections);
    } else {
      std::fill_n(corrections, args.count, args.correction_of_all);
    }
    args.correction = corrections;
  }
  corrections[hit] = -std::numeric_limits<float>::infinity();
}

void check_classes(SampledSoftmaxArgs& args, Workspace& workspace) {
  SeenRows seen(args.classes, args.count, workspace);
  float* corrections = nullptr;
  for (Index j = 0; j < args.count; ++j) {
    std::int32_t& place = seen.find(j);
    if (place == 0) {
      if (j < args.positives || args.updated != nullptr) place = static_cast<std::int32_t>(j + 1);
    } else if (j >= args.positives && place <= args.positives) {
      leave_out(args, j, workspace, corrections);
    } else {
      twice(args.classes[j], place - 1, j);
    }
  }
}

}  // namespace

void sampled_softmax(SampledSoftmaxArgs args, Workspace& workspace) {
  if (args.classes != nullptr) check_classes(args, workspace);
  args.layout = softmax_layout(args.batch, args.width, args.count);
  const Index own = args.layout.own_floats, shared = args.layout.shared_floats;
  const auto others = static_cast<Index>(workspace.threads() - 1);
  float* memory = workspace.block<float>(0, static_cast<std::uint64_t>(shared + others * own));
  const auto kernel = workspace.kernels().sampled_softmax;
  for (Index phase = 0; phase < args.layout.phases; ++phase) {
    workspace.run([&](const Worker& worker) {
      float* scratch = worker.index == 0 ? memory : memory + shared + (worker.index - 1) * own;
      kernel(args, Worker{worker.index, worker.count, scratch, memory, phase});
    });
  }
}

}  // namespace edge
