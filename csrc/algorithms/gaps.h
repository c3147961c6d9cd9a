// Ascending indices as gaps: block by block in the shortest of three forms.
//
// Stream, bits least significant first:
//   count     LEB128 (1 to 5 bytes, no superfluous ones)
//   blocks    of 256 indices, the last one what is left; each is a form of 6 bits, then its gaps
//   padding   zero bits up to the end of a byte; nothing follows
// gap = index - previous index - 1 (previous = -1 at first), and by its form a block holds
//   b = 0..30 Golomb-Rice (Rice and Plaunt, 1971), q = gap >> b: q zeros, a one and the b low bits
//   of
//             the gap where q < 16; otherwise 16 zeros, 5 bits of width w and w bits of gap. At b =
//             0 this is the bitmap of the places after the previous index, with long gaps cut
//             short.
//   31        reserved
//   32 + w    raw: w bits a gap, 0 <= w <= 31; w = 0 is a run
//
// The long form is for clusters: a jump between rows must not spoil the parameter that suits the
// gaps inside them. A writer starts at b = log2(median gap), the best for a geometric distribution,
// and goes up or down while that takes fewer bits. No value is longer than 52 bits, no block than 6
// + 31 * 256 bits, and no stream than 5 + 3.9 bytes an index.
//
// n <= 2^31 - 1. Bytes moved: writing reads the indices twice; both read or write the stream once.
// Extra memory: writing a byte for 256 indices, reading none. One thread: 10^5 indices, of a 1 %
// update of 10^7 parameters, take less than a millisecond each way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/checks.h"
#include "kernels/worker.h"

namespace edge {

constexpr Index kGapBlock = 256;
constexpr Index kMaxPlaces = 2147483647;

constexpr std::size_t gap_blocks(std::size_t indices) {
  return (indices + static_cast<std::size_t>(kGapBlock) - 1) / static_cast<std::size_t>(kGapBlock);
}

// The form of every block, and the bytes of the whole stream. Throws std::invalid_argument unless
// 0 <= indices[0] < indices[1] < ... < n <= kMaxPlaces; `forms` has gap_blocks(count) bytes.
std::uint64_t plan_gaps(Span<const std::int32_t> indices, Index n, Span<std::uint8_t> forms);

// Writes exactly the bytes that plan_gaps counted.
void write_gaps(Span<const std::int32_t> indices, Span<const std::uint8_t> forms,
                Span<std::uint8_t> out);

// How many indices a stream says it holds; StreamError if more than max_count, than n or than so
// few bytes can hold.
Index count_gaps(Span<const std::uint8_t> stream, Index n, Index max_count);

// Fills `indices`, whose size is count_gaps(); StreamError names the first rule that is broken.
// Time is O(indices + bytes of the stream), whatever the bytes are.
void read_gaps(Span<const std::uint8_t> stream, Index n, Span<std::int32_t> indices);

}  // namespace edge
