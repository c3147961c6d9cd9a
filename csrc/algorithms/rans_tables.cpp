#include <limits>

#include "algorithms/rans.h"

namespace edge {
namespace {

[[noreturn]] void bad_row(Index row, const std::string& what) {
  throw std::invalid_argument("cdf row " + std::to_string(row) + ": " + what);
}

void check_row(Index row, const std::int32_t* cdf, std::int32_t length, std::int32_t offset) {
  if (cdf[0] != 0 || cdf[length - 1] != kRansTotal) {
    bad_row(row, "counts go from 0 to 65536, got " + std::to_string(cdf[0]) + " to " +
                     std::to_string(cdf[length - 1]));
  }
  for (std::int32_t i = 1; i < length; ++i) {
    if (cdf[i] <= cdf[i - 1]) {
      bad_row(row, "counts must ascend, so that every symbol can be coded, but entry " +
                       std::to_string(i) + " is " + std::to_string(cdf[i]) + " after " +
                       std::to_string(cdf[i - 1]));
    }
  }
  if (std::int64_t{offset} + length > std::numeric_limits<std::int32_t>::max()) {
    bad_row(row, "offset " + std::to_string(offset) + " leaves symbols that do not fit 32 bits");
  }
}

RansTables::Divisor divisor_of(std::uint32_t frequency) {
  const std::uint32_t shift =
      frequency == 1 ? 0 : 32 - static_cast<std::uint32_t>(__builtin_clz(frequency - 1));
  const std::uint64_t whole = (std::uint64_t{1} << 63) / frequency;
  const std::uint64_t rest = ((std::uint64_t{1} << 63) % frequency) << shift;
  return {(whole << shift) + (rest + frequency - 1) / frequency, shift};
}

}  // namespace

RansTables::RansTables(Span<const std::int32_t> cdfs, Index width, Span<const std::int32_t> lengths,
                       Span<const std::int32_t> offsets) {
  const auto rows = static_cast<Index>(lengths.size());
  const auto entries = static_cast<Index>(cdfs.size());
  if (rows < 1 || rows > kMaxRows || offsets.size() != lengths.size() || width < 1 ||
      entries % width != 0 || entries / width != rows) {
    throw std::invalid_argument("cdfs (rows, width) take a length and an offset for each of 1 to " +
                                std::to_string(kMaxRows) + " rows, got " + std::to_string(entries) +
                                " counts in rows of " + std::to_string(width) + ", " +
                                std::to_string(rows) + " lengths and " +
                                std::to_string(offsets.size()) + " offsets");
  }
  std::uint64_t bins = 0;
  for (Index row = 0; row < rows; ++row) {
    const std::int32_t length = lengths[static_cast<std::size_t>(row)];
    if (length < 3 || length > width || length > kRansTotal + 1) {
      bad_row(row, "a length is 3 (one symbol and the escape) to the width, " +
                       std::to_string(width) + ", and 65537, got " + std::to_string(length));
    }
    bins += static_cast<std::uint64_t>(length) - 1;
  }
  if (bins > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("cdfs hold " + std::to_string(bins) + " bins, at most 2^32 - 1");
  }
  rows_.reserve(lengths.size());
  buckets_.reserve(lengths.size() * kBuckets);
  bins_.reserve(static_cast<std::size_t>(bins));
  divisors_.reserve(static_cast<std::size_t>(bins));
  for (Index row = 0; row < rows; ++row) {
    const auto r = static_cast<std::size_t>(row);
    add_row(row, cdfs.data() + row * width, lengths[r], offsets[r]);
  }
}

void RansTables::add_row(Index row, const std::int32_t* cdf, std::int32_t length,
                         std::int32_t offset) {
  check_row(row, cdf, length, offset);
  const auto bins = static_cast<std::uint32_t>(length - 1);
  rows_.push_back({offset, static_cast<std::uint32_t>(bins_.size()), bins - 1});
  std::int32_t bucket = 0;
  for (std::uint32_t bin = 0; bin < bins; ++bin) {
    const auto frequency = static_cast<std::uint32_t>(cdf[bin + 1] - cdf[bin]);
    bins_.push_back({static_cast<std::uint16_t>(cdf[bin]), static_cast<std::uint16_t>(frequency)});
    divisors_.push_back(divisor_of(frequency));
    for (; bucket < kBuckets && bucket * (kRansTotal / kBuckets) < cdf[bin + 1]; ++bucket) {
      buckets_.push_back(static_cast<std::uint16_t>(bin));
    }
  }
}

}  // namespace edge
