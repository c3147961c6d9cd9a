// Values in fewer bits, and back. x (n,) float32, 4-byte aligned; a block is `block` values in a
// row, the last one what is left; a scale (ceil(n / block),) float32 belongs to each.
//
// convert_half: float16 or bfloat16 <-> float32, rounded to nearest, ties to even, subnormals too.
//   |x| that rounds beyond the largest finite value (float16: from 65,520) becomes infinity;
//   infinity stays; a NaN keeps its sign and upper bits and turns quiet. Way back exact (quiet NaN
//   from float16).
// quantize, q (n,) int8 or, for sign, bits (ceil(n / 8),) uint8:
//   nearest     scale = max |x| / 127; q = round_half_even(x / scale) in [-127, 127];
//               |x - q scale| <= (1/2 + 2^-16) scale
//   stochastic  scale = max |x| / levels, or ||x||_2 / levels; r = |x| / scale;
//               q = sign(x) (floor(r) + [u < r - floor(r)]), |q| <= levels
//               (QSGD: Alistarh et al., 2017, eq. 4). E[q scale] = x but for 2^-24 (r + 1) scale.
//               u = 24 bits of hash64(seed, i / 2): the upper ones for even i, bits 16..39 for odd
//               i
//   sign        scale = mean |x|; bit i % 8 of byte i / 8 = sign bit of x[i]; `block` a multiple
//   of 8.
//               ||x - Q(x)||^2 = ||x||^2 - ||x||_1^2 / count over a block: never longer than x
//   Where a scale would be subnormal, the block is sent as zeros with scale 0 (nearest,
//   stochastic). Every x[i] must be finite: `first_bad` gets the place of a worker's first that is
//   not, else -1.
// dequantize: q scale, or scale with the sign's bit. Scales may be anything; so is what comes out.
//
// Sums (norms, means) are in double, 16 partial sums in a fixed order; nothing is fused: the same
// bits on every instruction set, for any number of workers. Workers share blocks, so one block is
// one worker's. Bytes moved: convert_half 6n; quantize 4n (and 4n again beyond the cache, where a
// block is larger than it) and what it writes; dequantize n (or n / 8) and 4n. Extra memory: none.
#pragma once

#include "kernels/worker.h"

namespace edge {

enum class Half : std::int32_t { to_float16, from_float16, to_bfloat16, from_bfloat16 };

struct ConvertArgs {
  const float* x = nullptr;  // to_*: read; from_*: null
  const std::uint16_t* h = nullptr;
  float* y = nullptr;  // from_*: written
  std::uint16_t* out = nullptr;
  Index n = 0;
  Half half = Half::to_float16;
};

enum class Rounding : std::int32_t { nearest, stochastic, sign };
enum class Norm : std::int32_t { max, l2 };

struct QuantizeArgs {
  const float* x = nullptr;
  void* q = nullptr;  // int8, or uint8 of bits
  float* scales = nullptr;
  Index* first_bad = nullptr;  // (workers,)
  Index n = 0, block = 1;
  Rounding rounding = Rounding::nearest;
  Norm norm = Norm::max;
  float levels = 127.0F;
  std::uint64_t seed = 0;
};

struct DequantizeArgs {
  const void* q = nullptr;
  const float* scales = nullptr;
  float* x = nullptr;
  Index n = 0, block = 1;
  bool sign = false;
};

}  // namespace edge
