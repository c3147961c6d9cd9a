// Arithmetic that rounds as it says, on a device and in the emulation, and the hash of
// edge_runtime/rng.py.
#pragma once

#include <cmath>

#include "cuda/execution.h"

namespace edge::cuda {

#if defined(__CUDA_ARCH__)
EDGE_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
EDGE_DEVICE float root(float x) { return __fsqrt_rn(x); }
EDGE_DEVICE double root(double x) { return __dsqrt_rn(x); }
EDGE_DEVICE float exponential(float x) { return expf(x); }
EDGE_DEVICE float logarithm(float x) { return logf(x); }
#else
EDGE_DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
EDGE_DEVICE float root(float x) { return std::sqrt(x); }
EDGE_DEVICE double root(double x) { return std::sqrt(x); }
EDGE_DEVICE float exponential(float x) { return std::exp(x); }
EDGE_DEVICE float logarithm(float x) { return std::log(x); }
#endif

// hash64(a, b, ...) is hashed(... hashed(mixed(a + kGolden), b) ...): SplitMix64's finaliser, word
// by word.
constexpr u64 kGolden = 0x9E3779B97F4A7C15U;
EDGE_BOTH u64 mixed(u64 h) {
  h = (h ^ h >> 30U) * 0xBF58476D1CE4E5B9U;
  h = (h ^ h >> 27U) * 0x94D049BB133111EBU;
  return h ^ h >> 31U;
}
EDGE_BOTH u64 hashed(u64 prefix, u64 word) { return mixed((prefix ^ word) + kGolden); }

}  // namespace edge::cuda
