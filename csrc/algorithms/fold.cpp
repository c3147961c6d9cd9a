#include "algorithms/fold.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

namespace edge {
namespace {

constexpr Index kMaxValues = Index{1} << 37;
constexpr Index kChunk = 4096;  // values that are made float32 at a time, 16 KiB
constexpr double kLargest = 0x1p72, kCommon = 0x1p27;  // bounds of a term, of one without `huge`
constexpr std::uint32_t kInfinity = 0x7F800000U;

// Where a chunk that begins at value i of the piece ends: short enough for the buffer, and for int8
// at the end of a block or inside one.
Index chunk_end(const CodedPiece& piece, Index i) {
  Index end = i + kChunk;
  if (piece.coding == Coding::int8) {
    end = piece.block < kChunk ? i + kChunk / piece.block * piece.block
                               : std::min(end, (i / piece.block + 1) * piece.block);
  }
  return std::min(end, piece.count);
}

// The values [begin, end) of a piece as float32: in `buffer`, or where they are.
const float* widened(const Kernels& kernels, const CodedPiece& piece, Index begin, Index end,
                     float* buffer) {
  const Worker alone;
  const auto* halves = static_cast<const std::uint16_t*>(piece.values) + begin;
  switch (piece.coding) {
    case Coding::float32:
      return static_cast<const float*>(piece.values) + begin;
    case Coding::float16:
      kernels.convert_half({nullptr, halves, buffer, nullptr, end - begin, Half::from_float16},
                           alone);
      return buffer;
    case Coding::bfloat16:
      kernels.convert_half({nullptr, halves, buffer, nullptr, end - begin, Half::from_bfloat16},
                           alone);
      return buffer;
    case Coding::int8:
      break;
  }
  DequantizeArgs args;
  args.q = static_cast<const std::int8_t*>(piece.values) + begin;
  args.scales = piece.scales + begin / piece.block;
  args.x = buffer;
  args.n = end - begin;
  args.block = piece.block;
  kernels.dequantize(args, alone);
  return buffer;
}

void check_places(const CodedPiece& piece, Index total) {
  if (piece.places == nullptr) {
    if (piece.begin < 0 || piece.count > total - piece.begin) {
      throw StreamError("OutOfRange", std::to_string(piece.count) + " values from place " +
                                          std::to_string(piece.begin) + " on, of " +
                                          std::to_string(total));
    }
    return;
  }
  std::int32_t previous = -1;
  bool ascending = true;
  for (Index i = 0; i < piece.count; ++i) {
    ascending &= piece.places[i] > previous;
    previous = piece.places[i];
  }
  if (!ascending || previous >= total) {
    throw StreamError("NotAscending", "places must ascend within 0.." + std::to_string(total - 1));
  }
}

// Consecutive tensors of one weight.
struct Segment {
  Index end;  // the place after its last
  double weight;
};

std::vector<Segment> segments_of(const std::vector<Index>& ends, Span<const double> weights) {
  std::vector<Segment> segments;
  for (std::size_t i = 0; i < ends.size(); ++i) {
    const bool goes_on = i > 0 && std::memcmp(&weights[i], &weights[i - 1], sizeof weights[i]) == 0;
    if (!goes_on) segments.push_back({0, weights[i]});
    segments.back().end = ends[i];
  }
  return segments;
}

[[noreturn]] void refuse_add(const std::string& why) { throw std::invalid_argument(why); }

double float_of(std::uint32_t bits) {
  float x = 0;
  std::memcpy(&x, &bits, sizeof x);
  return static_cast<double>(x);
}

// Adds the values [begin, end) of a piece, a chunk.
void fold_chunk(const Kernels& kernels, const CodedPiece& piece, Index begin, Index end,
                const std::vector<Segment>& segments, FoldArgs args) {
  float buffer[kChunk];
  const float* x = widened(kernels, piece, begin, end, buffer);
  for (Index i = begin; i < end; i += args.n) {
    const Index first = piece.places == nullptr ? piece.begin + i : piece.places[i];
    const auto segment =
        std::upper_bound(segments.begin(), segments.end(), first,
                         [](Index place, const Segment& each) { return place < each.end; });
    args.x = x + (i - begin);
    args.weight = segment->weight;
    if (piece.places == nullptr) {
      args.shift = first;
      args.n = std::min(end, segment->end - piece.begin) - i;
    } else {
      args.places = piece.places + i;
      args.n = std::lower_bound(args.places, piece.places + end, segment->end) - args.places;
    }
    kernels.fold(args, Worker());
  }
}

// A worker's chunks of a piece.
void fold_share(const Kernels& kernels, const CodedPiece& piece,
                const std::vector<Segment>& segments, const FoldArgs& sums, const Worker& worker) {
  const Index step = std::max<Index>(chunk_end(piece, 0), 1);
  const Index steps = (piece.count + step - 1) / step;
  const Index last = std::min(piece.count, steps * (worker.index + 1) / worker.count * step);
  for (Index i = steps * worker.index / worker.count * step; i < last;) {
    const Index end = std::min(last, chunk_end(piece, i));
    fold_chunk(kernels, piece, i, end, segments, sums);
    i = end;
  }
}

}  // namespace

CodedUpdate::CodedUpdate(Workspace& workspace, std::vector<CodedPiece> pieces, Index total)
    : pieces_(std::move(pieces)), total_(total) {
  const Kernels& kernels = workspace.kernels();
  float buffer[kChunk];
  std::uint32_t most = 0;
  for (const CodedPiece& piece : pieces_) {
    check_places(piece, total);
    for (Index i = 0, end = 0; i < piece.count; i = end) {
      end = chunk_end(piece, i);
      const float* x = widened(kernels, piece, i, end, buffer);
      kernels.peak({x, end - i, &most}, Worker());
      if (most < kInfinity) continue;
      Index bad = 0;
      while (std::isfinite(x[bad])) ++bad;
      first_bad_ = piece.places == nullptr ? piece.begin + i + bad : piece.places[i + bad];
      return;
    }
  }
  peak_ = static_cast<float>(float_of(most));
}

void Accumulator::Free::operator()(void* pointer) const { std::free(pointer); }

// Pages of zeros that take no memory before they are written.
Accumulator::Sums Accumulator::zeros(Index count) {
  const auto wanted = static_cast<std::uint64_t>(std::max<Index>(count, 1));
  if (wanted > SIZE_MAX / sizeof(std::int64_t)) throw std::bad_alloc();  // of 32 bits
  void* pointer = std::calloc(static_cast<std::size_t>(wanted), sizeof(std::int64_t));
  if (pointer == nullptr) throw std::bad_alloc();
  return Sums(static_cast<std::int64_t*>(pointer));
}

Accumulator::Accumulator(const std::vector<Index>& sizes) {
  for (const Index size : sizes) {
    if (size < 0 || size > kMaxValues - total()) {
      refuse_add("sizes must not be negative, nor above 2^37 in all, got " + std::to_string(size));
    }
    ends_.push_back(total() + size);
  }
  coarse_ = zeros(total());
  fine_ = zeros(total());
}

std::uint64_t Accumulator::bytes() const {
  return static_cast<std::uint64_t>(total()) * (huge_ ? 24 : 16);
}

void Accumulator::check(const CodedUpdate& update, Span<const double> weights) const {
  if (update.first_bad() >= 0) {
    refuse_add("the value at place " + std::to_string(update.first_bad()) + " is not finite");
  }
  if (terms_ == kMaxTerms) refuse_add("sums hold at most 131072 updates");
  if (weights.size() != ends_.size() || update.total() != total()) {
    refuse_add("an update of " + std::to_string(update.total()) + " values and " +
               std::to_string(weights.size()) + " weights for sums of " + std::to_string(total()) +
               " values and " + std::to_string(ends_.size()) + " tensors");
  }
  for (const double weight : weights) {
    if (!std::isfinite(weight)) refuse_add("a weight is not finite");
  }
}

void Accumulator::add(Workspace& workspace, const CodedUpdate& update, Span<const double> weights) {
  check(update, weights);
  double heaviest = 0;
  for (const double weight : weights) heaviest = std::max(heaviest, std::fabs(weight));
  const double largest = heaviest * static_cast<double>(update.peak());
  if (!(largest < kLargest)) {
    refuse_add("a weighted value of up to " + std::to_string(largest) + " is not below 2^72");
  }
  const bool huge = largest >= kCommon;
  if (huge && !huge_) huge_ = zeros(total());

  const std::vector<Segment> segments = segments_of(ends_, weights);
  FoldArgs sums;
  sums.huge = huge ? huge_.get() : nullptr;
  sums.coarse = coarse_.get();
  sums.fine = fine_.get();
  for (const CodedPiece& piece : update.pieces()) {
    workspace.run([&](const Worker& worker) {
      fold_share(workspace.kernels(), piece, segments, sums, worker);
    });
  }
  ++terms_;
}

void Accumulator::sums(Index tensor, Span<double> out) const {
  constexpr std::int64_t kFinePerCoarse = std::int64_t{1} << (kCoarseBits - kFineBits);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const Index at = start(tensor) + static_cast<Index>(i);
    // What is left of the fine units is exact in float64, so one rounding remains, of the sum.
    const std::int64_t carried = fine_[at] / kFinePerCoarse;
    const auto fine = static_cast<double>(fine_[at] - carried * kFinePerCoarse);
    const auto coarse = static_cast<double>(coarse_[at] + carried);
    double sum = coarse * 0x1p-18 + fine * 0x1p-64;
    if (huge_) sum += static_cast<double>(huge_[at]) * 0x1p27;
    out[i] = sum;
  }
}

}  // namespace edge
