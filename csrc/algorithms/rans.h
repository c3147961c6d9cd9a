// rANS: integers under quantised distributions, near their entropy (Duda, 2013, arXiv 1311.2540;
// the order of words and the escapes are those of ryg_rans and CompressAI).
//
// A table is a row of 16-bit cumulative counts 0 = c[0] < c[1] < ... < c[bins] = 65536 and an
// offset: bin v < bins - 1 is the integer v + offset, the last bin is the escape. A state x >= L
// codes bin v of frequency f = c[v + 1] - c[v], start c[v]:
//   write   while x >= (L >> 16) f 2^W: emit the low W bits, x >>= W
//           x = floor(x / f) 2^16 + x mod f + c[v]
//   read    v from c[v] <= x mod 2^16 < c[v + 1];  x = f floor(x / 2^16) + x mod 2^16 - c[v]
//           while x < L: x = x 2^W + next W bits
// Wide: L = 2^31, words of W = 32, at most one a symbol. Narrow: L = 2^23, bytes: what is left in a
// state at the end is 4 bytes instead of 8, for short streams. Symbol i is in state i mod ways,
// ways in {1, 2, 4}, all on one stream of words: so many symbols are in flight at once. Escape: v <
// 0 is sent as -2 v - 1, v >= bins - 1 as 2 (v - bins + 1): the number of its 4-bit groups, then
// the groups, lowest first, 4 bits each: x = x 2^4 + group. Symbols are written last to first; then
// the states, last to first. So a stream is, in the order of reading: the states (low word first),
// the words. It carries neither tables nor lengths.
//
// floor(x / f) without dividing: with 2^(s-1) < f <= 2^s and r = ceil(2^(63+s) / f), it is
// floor(x r / 2^(63+s)) for x < 2^63: r = (2^(63+s) + e) / f, e < f, adds x e / (f 2^(63+s)) < 1 /
// f.
//
// Overhead: the states, 8 (or 4) bytes each, and less than 0.1 % above the tables' cross-entropy.
// Extra memory: tables 20 bytes a bin and 524 a row; writing half a byte a symbol and
// 12 KiB, or three times the stream and 24 KiB where that is more; reading none.
#pragma once

#include <cstdint>
#include <vector>

#include "core/checks.h"
#include "kernels/worker.h"

namespace edge {

constexpr unsigned kRansBits = 16;
constexpr std::int32_t kRansTotal = 1 << kRansBits;

class RansTables {
 public:
  static constexpr Index kBuckets = 256;
  static constexpr Index kMaxRows = 1 << 20;

  struct Bin {
    std::uint16_t start, frequency;
  };
  struct Divisor {  // of the bin of the same number
    std::uint64_t reciprocal;
    std::uint32_t shift;
  };
  struct Row {
    std::int32_t offset;
    std::uint32_t first_bin, escape;  // the escape counted from the first bin
  };

  // cdfs (rows, width), of which row r has lengths[r] entries and the rest is not read. Throws
  // std::invalid_argument, naming the row, unless 3 <= lengths[r] <= width and the counts are as
  // above and offsets[r] + bins fits 32 bits.
  RansTables(Span<const std::int32_t> cdfs, Index width, Span<const std::int32_t> lengths,
             Span<const std::int32_t> offsets);

  Index rows() const { return static_cast<Index>(rows_.size()); }
  const Row& row(std::int32_t index) const { return rows_[static_cast<std::size_t>(index)]; }
  const Bin* bins(const Row& row) const { return bins_.data() + row.first_bin; }
  const Divisor* divisors(const Row& row) const { return divisors_.data() + row.first_bin; }
  // The first bin that reaches beyond (count >> 8) << 8.
  std::uint16_t bucket(std::int32_t index, std::uint32_t count) const {
    return buckets_[static_cast<std::size_t>(index * kBuckets) + (count >> 8)];
  }

 private:
  void add_row(Index row, const std::int32_t* cdf, std::int32_t length, std::int32_t offset);

  std::vector<Row> rows_;
  std::vector<Bin> bins_;
  std::vector<Divisor> divisors_;
  std::vector<std::uint16_t> buckets_;
};

struct RansForm {
  bool wide = true;
  int ways = 1;
};

// Bytes at the end of a buffer that was filled from there.
struct RansStream {
  std::vector<std::uint8_t> buffer;
  std::size_t begin = 0;
};

// Symbol i under table indexes[i]. Throws std::invalid_argument for a form that is none, for
// different numbers of symbols and indexes, and for an index that is no row.
RansStream rans_encode(const RansTables& tables, const RansForm& form,
                       Span<const std::int32_t> symbols, Span<const std::int32_t> indexes);

// Fills `symbols`, as many as indexes. Throws the same, and StreamError where a rule is broken:
// what a corrupted stream decodes to must leave every state at L with all words read. Time is
// O(indexes), whatever the stream is.
void rans_decode(const RansTables& tables, const RansForm& form, Span<const std::uint8_t> stream,
                 Span<const std::int32_t> indexes, Span<std::int32_t> symbols);

}  // namespace edge
