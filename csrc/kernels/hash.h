// The mixing function of edge_runtime/rng.py, word by word: hash64(a, b, c) is
// mixed(mixed(mixed(a + G) ^ b + G) ^ c + G). Internal linkage, as everything in simd.h.
#pragma once

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15U;

// SplitMix64's finaliser.
EDGE_INLINE std::uint64_t mixed(std::uint64_t h) {
  h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9U;
  h = (h ^ h >> 27) * 0x94D049BB133111EBU;
  return h ^ h >> 31;
}

EDGE_INLINE std::uint64_t hashed(std::uint64_t prefix, std::uint64_t word) {
  return mixed((prefix ^ word) + kGolden);
}

}  // namespace EDGE_ISA
}  // namespace edge
