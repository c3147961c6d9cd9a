#include "algorithms/sampled_softmax.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/gemm.h"

namespace edge {

namespace {

// Sums of rows, one for every group: 512 KiB, which a second-level cache holds beside the logits.
constexpr Index kMostSumFloats = 128 * 1024;
// A group of fewer units than these costs more to add than it is worth, but for the first four.
constexpr Index kFewUnits = 16, kFewGroups = 4;
// Fewer multiply-adds a group and product are done sooner than another thread takes them up.
constexpr Index kFewProducts = 512 * 1024;

Index up_to(Index value, Index step) { return (value + step - 1) / step * step; }
Index parts(Index value, Index step) { return (value + step - 1) / step; }

}  // namespace

SoftmaxLayout softmax_layout(Index batch, Index width, Index classes) {
  SoftmaxLayout it;
  it.batch_pitch = up_to(batch, kMaxTileColumns);
  it.width_pitch = up_to(width, kMaxTileColumns);
  it.keep = classes <= kSoftmaxTile / it.batch_pitch;
  const Index units = parts(classes, kSoftmaxUnit), sums = it.batch_pitch * it.width_pitch;
  const Index most =
      std::min({std::clamp(units / kFewUnits, kFewGroups, kSoftmaxGroups), kMostSumFloats / sums,
                std::min(batch * width, kFewProducts) * classes / kFewProducts});
  it.groups = std::clamp<Index>(most, 1, units);
  it.unit_group = parts(units, it.groups);
  it.unit = parts(classes, it.unit_group * it.groups);
  it.units = parts(classes, it.unit);
  it.groups = parts(it.units, it.unit_group);
  it.slot_count = it.keep ? it.units : it.groups;
  // A unit's rows, a tile of gradients, and logits: a unit's of a panel, or a tile's of all.
  it.own_logits = (kSoftmaxUnit + kMaxTileRows) * it.width_pitch;
  it.own_floats = it.own_logits + std::max(kSoftmaxUnit * kMaxTileColumns,
                                           it.keep ? 0 : kMaxTileRows * it.batch_pitch);
  Index at = it.own_floats;
  const auto place = [&at](Index floats) {
    const Index begin = at;
    at += up_to(floats, 16);
    return begin;
  };
  it.by_width = place(it.batch_pitch * width);
  it.by_example = place(batch * it.width_pitch);
  it.rows_sums = place(it.groups * sums);
  it.logits = place(it.keep ? classes * it.batch_pitch : 0);
  it.slots = place(it.slot_count * it.batch_pitch);
  it.group_sums = place(it.groups * it.batch_pitch);
  for (Index* each : {&it.peaks, &it.factors, &it.targets, &it.own_gradients, &it.losses,
                      &it.lengths, &it.labels})
    *each = place(it.batch_pitch);
  it.shared_floats = at;
  return it;
}

namespace {

constexpr Index kFewWords = 8 * 1024;  // 64 KiB, cleared in a microsecond

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

// Whether the rows of classes[begin] .. classes[end - 1] were not in `bits`, where they are noted
// if `note`.
bool are_new(const SampledSoftmaxArgs& args, Index begin, Index end, bool note,
             std::uint64_t* bits) {
  std::uint64_t seen = 0;
  for (Index j = begin; j < end; ++j) {
    const auto row = static_cast<std::uint32_t>(args.classes[j]);
    const std::uint64_t word = bits[row / 64];
    seen |= word >> (row % 64);
    if (note) bits[row / 64] = word | std::uint64_t{1} << (row % 64);
  }
  return (seen & 1) == 0;
}

// Whether no class has another's row, by a bit for each row of the table. False also where the
// table is too large for that to be the shorter way.
bool surely_distinct(const SampledSoftmaxArgs& args, Workspace& workspace) {
  const Index words = args.table / 64 + 1;
  if (words > std::max(kFewWords, 2 * args.count)) return false;
  auto* bits = workspace.block<std::uint64_t>(1, static_cast<std::uint64_t>(words));
  std::fill_n(bits, words, 0);
  return are_new(args, 0, args.positives, true, bits) &&
         are_new(args, args.positives, args.count, args.updated != nullptr, bits);
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
  if (args.classes != nullptr && !surely_distinct(args, workspace)) check_classes(args, workspace);
  args.layout = softmax_layout(args.batch, args.width, args.count);
  const Index own = args.layout.own_floats, shared = args.layout.shared_floats;
  const auto others = static_cast<Index>(workspace.threads() - 1);
  float* memory = workspace.block<float>(0, static_cast<std::uint64_t>(shared + others * own));
  const auto kernel = workspace.kernels().sampled_softmax;
  for (Index phase = 0; phase < args.layout.phases; ++phase) {
    // Nothing to share in the first part: done before another thread would have woken.
    if (args.layout.groups == 1 && args.batch <= kMaxTileColumns) {
      kernel(args, Worker{0, 1, memory, memory, phase});
      continue;
    }
    workspace.run([&](const Worker& worker) {
      float* scratch = worker.index == 0 ? memory : memory + shared + (worker.index - 1) * own;
      kernel(args, Worker{worker.index, worker.count, scratch, memory, phase});
    });
  }
}

}  // namespace edge
