// What a decoder of hostile bytes is held to, for the test and for both fuzzers: an error, or
// values that keep the format's promises and are the same after they are written and read once
// more.
//
// Every array is an allocation of exactly its size, where AddressSanitizer sees one byte too many.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "algorithms/gaps.h"
#include "algorithms/rans.h"
#include "check.h"

namespace coders {

using Bytes = std::vector<std::uint8_t>;
using Numbers = std::vector<std::int32_t>;
using edge::Index;

template <class T>
edge::Span<const T> in(const std::vector<T>& values) {
  return {values.data(), values.size()};
}
template <class T>
edge::Span<T> out(std::vector<T>& values) {
  return {values.data(), values.size()};
}

inline Bytes gaps_written(const Numbers& indices, Index n) {
  Bytes forms(edge::gap_blocks(indices.size()));
  Bytes stream(static_cast<std::size_t>(edge::plan_gaps(in(indices), n, out(forms))));
  edge::write_gaps(in(indices), in(forms), out(stream));
  return stream;
}

// Nothing where the stream was refused.
inline std::optional<Numbers> gaps_read(const Bytes& stream, Index n, Index max_count) {
  try {
    Numbers indices(static_cast<std::size_t>(edge::count_gaps(in(stream), n, max_count)));
    edge::read_gaps(in(stream), n, out(indices));
    return indices;
  } catch (const edge::StreamError&) {
    return std::nullopt;
  }
}

inline void gaps_survive(const Bytes& stream, Index n) {
  const auto indices = gaps_read(stream, n, 1 << 16);
  if (!indices) return;
  std::int64_t previous = -1;
  for (const std::int32_t index : *indices) {
    CHECK(index > previous && index < n);
    previous = index;
  }
  const Bytes again = gaps_written(*indices, n);
  CHECK(gaps_read(again, n, 1 << 16) == indices);
}

inline const edge::RansTables& tables() {
  static const edge::RansTables made = [] {
    // Seven bins, one bin of nearly everything, 4,000 bins of 16 and the rest.
    constexpr Index kWidth = 4002;
    Numbers cdfs(3 * kWidth);
    const Numbers narrow = {0, 4096, 20480, 45056, 61440, 65280, 65536};
    const Numbers skewed = {0, 65534, 65535, 65536};
    std::copy(narrow.begin(), narrow.end(), cdfs.begin());
    std::copy(skewed.begin(), skewed.end(), cdfs.begin() + kWidth);
    for (Index i = 0; i < kWidth; ++i) {
      cdfs[static_cast<std::size_t>(2 * kWidth + i)] =
          i + 1 < kWidth ? static_cast<std::int32_t>(16 * i) : edge::kRansTotal;
    }
    return edge::RansTables(in(cdfs), kWidth, in(Numbers{7, 4, kWidth}), in(Numbers{-2, 7, -2000}));
  }();
  return made;
}

inline Numbers table_indexes(std::size_t count) {
  Numbers indexes(count);
  for (std::size_t i = 0; i < count; ++i) indexes[i] = static_cast<std::int32_t>(i % 3);
  return indexes;
}

inline Bytes rans_written(const Numbers& symbols, const edge::RansForm& form) {
  const edge::RansStream stream =
      edge::rans_encode(tables(), form, in(symbols), in(table_indexes(symbols.size())));
  return {stream.buffer.begin() + static_cast<std::ptrdiff_t>(stream.begin), stream.buffer.end()};
}

inline std::optional<Numbers> rans_read(const Bytes& stream, std::size_t count,
                                        const edge::RansForm& form) {
  try {
    Numbers symbols(count);
    edge::rans_decode(tables(), form, in(stream), in(table_indexes(count)), out(symbols));
    return symbols;
  } catch (const edge::StreamError&) {
    return std::nullopt;
  }
}

inline void rans_survives(const Bytes& stream, std::size_t count, const edge::RansForm& form) {
  const auto symbols = rans_read(stream, count, form);
  if (!symbols) return;
  CHECK(rans_read(rans_written(*symbols, form), count, form) == symbols);
}

}  // namespace coders
