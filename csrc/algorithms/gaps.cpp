#include "algorithms/gaps.h"

#include <algorithm>

#include "algorithms/bits.h"
#include "algorithms/broken_stream.h"

namespace edge {
namespace {

constexpr unsigned kFormBits = 6;
constexpr unsigned kReserved = 31, kRaw = 32;
constexpr std::size_t kMaxCountBytes = 5;

constexpr std::uint32_t kMaxQuotient = 16;
constexpr unsigned kWidthBits = 5;

struct Block {
  Index count;
  std::uint32_t gaps[kGapBlock];
  std::uint32_t widths[kGapBlock];  // significant bits of the gaps
};

std::uint64_t rice_bits(const Block& block, unsigned b) {
  std::uint32_t bits = 0;  // at most 52 * 256
  for (Index i = 0; i < block.count; ++i) {
    const std::uint32_t quotient = block.gaps[i] >> b;
    bits +=
        quotient < kMaxQuotient ? quotient + 1 + b : kMaxQuotient + kWidthBits + block.widths[i];
  }
  return bits;
}

struct Form {
  unsigned code;
  std::uint64_t bits;  // of the gaps
};

unsigned median_width(const Block& block) {
  Index of_width[32] = {};
  for (Index i = 0; i < block.count; ++i) ++of_width[block.widths[i]];
  unsigned width = 0;
  for (Index below = of_width[0]; below * 2 < block.count; below += of_width[++width]) {
  }
  return width;
}

Form best_form(const Block& block) {
  std::uint32_t widest = 0;
  for (Index i = 0; i < block.count; ++i) widest = std::max(widest, block.widths[i]);
  const Form raw = {kRaw + widest, static_cast<std::uint64_t>(block.count) * widest};
  const unsigned width = median_width(block);
  Form rice = {width == 0 ? 0 : width - 1, 0};
  rice.bits = rice_bits(block, rice.code);
  // Up only for fewer bits, down for as few too.
  for (; rice.code + 1 < kReserved; ++rice.code) {
    const std::uint64_t bits = rice_bits(block, rice.code + 1);
    if (bits >= rice.bits) break;
    rice.bits = bits;
  }
  for (; rice.code > 0; --rice.code) {
    const std::uint64_t bits = rice_bits(block, rice.code - 1);
    if (bits > rice.bits) break;
    rice.bits = bits;
  }
  return raw.bits < rice.bits ? raw : rice;
}

// Returns the last index, from which the next block goes on.
std::int32_t load(const std::int32_t* indices, Index count, std::int32_t previous, Block& block) {
  block.count = count;
  for (Index i = 0; i < count; ++i) {
    const auto gap = static_cast<std::uint32_t>(indices[i] - previous - 1);
    block.gaps[i] = gap;
    block.widths[i] = gap == 0 ? 0 : 32 - static_cast<std::uint32_t>(__builtin_clz(gap));
    previous = indices[i];
  }
  return previous;
}

[[noreturn]] __attribute__((cold, noinline)) void not_ascending(Span<const std::int32_t> indices,
                                                                Index n) {
  std::int32_t previous = -1;
  std::size_t i = 0;
  for (; indices[i] > previous && indices[i] < n; ++i) previous = indices[i];
  throw std::invalid_argument("indices must ascend within 0.." + std::to_string(n - 1) +
                              ", but indices[" + std::to_string(i) + "] is " +
                              std::to_string(indices[i]) + " after " + std::to_string(previous));
}

void check_ascending(Span<const std::int32_t> indices, Index n) {
  std::int32_t previous = -1;
  bool ascending = true;
  for (const std::int32_t index : indices) {
    ascending &= index > previous;
    previous = index;
  }
  if (!ascending || previous >= n) not_ascending(indices, n);
}

[[noreturn]] __attribute__((cold, noinline)) void bad_places(Index n, Index max_count) {
  throw std::invalid_argument("n must be in 0..2147483647 and max_count not negative, got " +
                              std::to_string(n) + " and " + std::to_string(max_count));
}

std::size_t count_bytes(std::uint64_t count) {
  std::size_t bytes = 1;
  for (; count >= 128; count >>= 7) ++bytes;
  return bytes;
}

void put_rice(BitWriter& bits, std::uint32_t gap, std::uint32_t width, unsigned b) {
  const std::uint32_t quotient = gap >> b;
  const std::uint64_t tail = (gap & low_bits(b)) << 1 | 1U;
  if (quotient >= kMaxQuotient) {
    bits.put(std::uint64_t{width} << kMaxQuotient, kMaxQuotient + kWidthBits);
    bits.put(gap, width);
  } else if (quotient + 1 + b <= 32) {
    bits.put(tail << quotient, quotient + 1 + b);
  } else {
    bits.put(0, quotient);
    bits.put(tail, 1 + b);
  }
}

struct Count {
  std::uint64_t value;
  std::size_t bytes;
};

Count read_count(Span<const std::uint8_t> stream) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < kMaxCountBytes; ++i) {
    if (i == stream.size()) broken_stream("Truncated", "the stream ends inside its count");
    value |= std::uint64_t{stream[i] & 127U} << (7 * i);
    if (stream[i] >= 128) continue;
    if (i > 0 && stream[i] == 0) break;
    return {value, i + 1};
  }
  broken_stream(
      "BadCount",
      "a count has 1 to 5 bytes, of which the last is below 128 and, unless alone, not 0");
}

// Every value lies in one window.
std::uint64_t read_rice(BitReader& bits, unsigned b) {
  const std::uint64_t window = bits.window();
  if ((window & low_bits(kMaxQuotient)) == 0) {
    const auto width = static_cast<unsigned>(window >> kMaxQuotient & low_bits(kWidthBits));
    bits.skip(kMaxQuotient + kWidthBits + width);
    return window >> (kMaxQuotient + kWidthBits) & low_bits(width);
  }
  const auto quotient = static_cast<unsigned>(__builtin_ctzll(window));
  bits.skip(quotient + 1 + b);
  return std::uint64_t{quotient} << b | (window >> (quotient + 1) & low_bits(b));
}

// Writes one block and returns the place after its last index.
std::uint64_t read_block(BitReader& bits, Index n, std::uint64_t next, std::int32_t* out,
                         Index count) {
  const auto form = static_cast<unsigned>(bits.window() & low_bits(kFormBits));
  bits.skip(kFormBits);
  if (form == kReserved) broken_stream("BadForm", "31 is no form of a block");
  for (Index i = 0; i < count; ++i) {
    if (form < kRaw) {
      next += read_rice(bits, form);
    } else {
      next += bits.window() & low_bits(form - kRaw);
      bits.skip(form - kRaw);
    }
    out[i] =
        static_cast<std::int32_t>(static_cast<std::uint32_t>(next));  // below 2^31 once checked
    ++next;
  }
  if (bits.past_end()) broken_stream("Truncated", "the stream ends inside a block");
  if (next > static_cast<std::uint64_t>(n)) {
    broken_stream("IndexOutOfRange", "the gaps go beyond the last of all places: ", n);
  }
  return next;
}

}  // namespace

std::uint64_t plan_gaps(Span<const std::int32_t> indices, Index n, Span<std::uint8_t> forms) {
  if (n < 0 || n > kMaxPlaces) bad_places(n, 0);
  check_ascending(indices, n);
  Block block;
  std::int32_t previous = -1;
  std::uint64_t bits = 0;
  const auto size = static_cast<Index>(indices.size());
  for (Index begin = 0; begin < size; begin += kGapBlock) {
    const Index count = std::min(kGapBlock, size - begin);
    previous = load(indices.data() + begin, count, previous, block);
    const Form form = best_form(block);
    forms[static_cast<std::size_t>(begin / kGapBlock)] = static_cast<std::uint8_t>(form.code);
    bits += kFormBits + form.bits;
  }
  return count_bytes(indices.size()) + (bits + 7) / 8;
}

void write_gaps(Span<const std::int32_t> indices, Span<const std::uint8_t> forms,
                Span<std::uint8_t> out) {
  std::uint64_t left = indices.size();
  std::uint8_t* to = out.data();
  for (; left >= 128; left >>= 7) *to++ = static_cast<std::uint8_t>(left | 128U);
  *to++ = static_cast<std::uint8_t>(left);
  BitWriter bits(to);
  Block block;
  std::int32_t previous = -1;
  const auto size = static_cast<Index>(indices.size());
  for (Index begin = 0; begin < size; begin += kGapBlock) {
    const Index count = std::min(kGapBlock, size - begin);
    previous = load(indices.data() + begin, count, previous, block);
    const unsigned form = forms[static_cast<std::size_t>(begin / kGapBlock)];
    bits.put(form, kFormBits);
    for (Index i = 0; i < count; ++i) {
      form < kRaw ? put_rice(bits, block.gaps[i], block.widths[i], form)
                  : bits.put(block.gaps[i], form - kRaw);
    }
  }
  bits.finish();
}

Index count_gaps(Span<const std::uint8_t> stream, Index n, Index max_count) {
  if (n < 0 || n > kMaxPlaces || max_count < 0) bad_places(n, max_count);
  const Count count = read_count(stream);
  const auto most = static_cast<std::uint64_t>(std::min(n, max_count));
  if (count.value > most) {
    throw StreamError("TooManyIndices", "the stream says it holds " + std::to_string(count.value) +
                                            " indices, at most " + std::to_string(most) +
                                            " are expected");
  }
  const std::uint64_t blocks = (count.value + kGapBlock - 1) / kGapBlock;
  if (blocks * kFormBits > (stream.size() - count.bytes) * 8) {
    throw StreamError("Truncated",
                      "the stream is too short for " + std::to_string(count.value) + " indices");
  }
  return static_cast<Index>(count.value);
}

void read_gaps(Span<const std::uint8_t> stream, Index n, Span<std::int32_t> indices) {
  const std::size_t header = read_count(stream).bytes;
  BitReader bits({stream.data() + header, stream.size() - header});
  std::uint64_t next = 0;
  const auto size = static_cast<Index>(indices.size());
  for (Index begin = 0; begin < size; begin += kGapBlock) {
    next = read_block(bits, n, next, indices.data() + begin, std::min(kGapBlock, size - begin));
  }
  if (bits.bits() - bits.at() >= 8) {
    broken_stream("TrailingBytes", "bytes that follow the last index: ",
                  static_cast<std::int64_t>((bits.bits() - bits.at()) / 8));
  }
  if (bits.window() != 0) broken_stream("BadPadding", "the last byte is not filled with zeros");
}

}  // namespace edge
