// Streams of bits, least significant bit of a byte first, moved a word at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/checks.h"

namespace edge {

constexpr std::uint64_t low_bits(unsigned count) { return (std::uint64_t{1} << count) - 1; }

// Writes to memory whose size the caller has worked out: whole words only when they are full, so
// not one byte beyond it.
class BitWriter {
 public:
  explicit BitWriter(std::uint8_t* out) : out_(out) {}

  // The `count` low bits of `value`; count <= 32, value < 2^count.
  void put(std::uint64_t value, unsigned count) {
    held_ |= value << filled_;
    filled_ += count;
    if (filled_ < 32) return;
    const auto word = static_cast<std::uint32_t>(held_);
    std::memcpy(out_, &word, sizeof word);
    out_ += sizeof word;
    held_ >>= 32;
    filled_ -= 32;
  }

  // The last, incomplete word; the bits up to the next byte are zero. Returns the end.
  std::uint8_t* finish() {
    for (unsigned done = 0; done < filled_; done += 8) {
      *out_++ = static_cast<std::uint8_t>(held_ >> done);
    }
    held_ = filled_ = 0;
    return out_;
  }

 private:
  std::uint8_t* out_;
  std::uint64_t held_ = 0;  // bits that wait for their word; fewer than 32 between calls
  unsigned filled_ = 0;
};

// Reads bytes from anywhere. Beyond the end there are zeros, so that a loop checks past_end() once
// a block of values instead of once a value.
class BitReader {
 public:
  explicit BitReader(Span<const std::uint8_t> bytes) : bytes_(bytes) {}

  // The next 57 bits at least; higher ones are either the stream's or zero.
  std::uint64_t window() const {
    const std::uint64_t byte = at_ >> 3;
    std::uint64_t word = 0;
    if (byte + sizeof word <= bytes_.size()) {
      std::memcpy(&word, bytes_.data() + byte, sizeof word);
    } else if (byte < bytes_.size()) {
      std::memcpy(&word, bytes_.data() + byte, bytes_.size() - static_cast<std::size_t>(byte));
    }
    return word >> (at_ & 7);
  }

  void skip(std::uint64_t bits) { at_ += bits; }
  std::uint64_t at() const { return at_; }
  std::uint64_t bits() const { return std::uint64_t{bytes_.size()} * 8; }
  bool past_end() const { return at_ > bits(); }

 private:
  Span<const std::uint8_t> bytes_;
  std::uint64_t at_ = 0;
};

}  // namespace edge
