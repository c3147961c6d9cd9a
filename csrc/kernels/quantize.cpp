// Compiled without fused multiply-adds (CMakeLists.txt), so that every instruction set rounds
// alike. Plain loops, of which compilers make vectors, but for what instructions do better:
// float16, signs.
#include "kernels/quantize.h"

#include "kernels/hash.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edge {
namespace EDGE_ISA {

namespace {

using Bits = std::uint32_t;

constexpr Bits kSign = 0x80000000U, kInfinity = 0x7F800000U;
constexpr float kSmallestNormal = 1.17549435e-38F, kLargest = 3.40282347e+38F;
constexpr Index kPartialSums = 16, kChunk = 256;

EDGE_INLINE Bits bits_of(float x) {
  Bits bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

EDGE_INLINE float float_of(Bits bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// As many as the instructions convert at once; the same bits as one by one.
#if defined(__AVX512F__)
// With a mask of all: GCC 12 warns of the undefined operand in those without.
constexpr Index kHalves = 16;
EDGE_INLINE void to_float16s(const float* x, std::uint16_t* h) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(h),
                      _mm512_maskz_cvtps_ph(0xFFFF, _mm512_loadu_ps(x), 0));
}
EDGE_INLINE void from_float16s(const std::uint16_t* h, float* x) {
  _mm512_storeu_ps(
      x, _mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(h))));
}
#elif defined(__F16C__)
constexpr Index kHalves = 8;
EDGE_INLINE void to_float16s(const float* x, std::uint16_t* h) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(h), _mm256_cvtps_ph(_mm256_loadu_ps(x), 0));
}
EDGE_INLINE void from_float16s(const std::uint16_t* h, float* x) {
  _mm256_storeu_ps(x, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(h))));
}
#elif defined(__aarch64__)
constexpr Index kHalves = 4;
EDGE_INLINE void to_float16s(const float* x, std::uint16_t* h) {
  vst1_u16(h, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x))));
}
EDGE_INLINE void from_float16s(const std::uint16_t* h, float* x) {
  vst1q_f32(x, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h))));
}
#else
constexpr Index kHalves = 1;

// Exponents are 112 apart. Below 2^-14, adding 1/2 leaves multiples of 2^-24, float16's subnormals,
// rounded by the addition.
EDGE_INLINE std::uint16_t to_float16(float x) {
  const Bits all = bits_of(x), u = all & ~kSign;
  const Bits normal = (u + 0xFFFU + (u >> 13 & 1U) - (112U << 23)) >> 13;
  const Bits small = bits_of(float_of(u) + 0.5F) - bits_of(0.5F);
  const Bits nan = 0x7E00U | (u >> 13 & 0x3FFU);
  Bits h = u < 0x38800000U ? small : normal;
  h = u >= 0x47800000U ? 0x7C00U : h;
  h = u > kInfinity ? nan : h;
  return static_cast<std::uint16_t>(h | (all >> 16 & 0x8000U));
}

EDGE_INLINE float from_float16(std::uint16_t h) {
  const Bits u = h & 0x7FFFU;
  const Bits small = bits_of(static_cast<float>(static_cast<std::int32_t>(u)) * 5.96046448e-08F);
  Bits bits = (u << 13) + (112U << 23);
  bits = u >= 0x7C00U ? bits + (112U << 23) : bits;
  bits = u > 0x7C00U ? bits | 0x400000U : bits;
  bits = u < 0x400U ? small : bits;
  return float_of(bits | (static_cast<Bits>(h) & 0x8000U) << 16);
}

EDGE_INLINE void to_float16s(const float* x, std::uint16_t* h) { *h = to_float16(*x); }
EDGE_INLINE void from_float16s(const std::uint16_t* h, float* x) { *x = from_float16(*h); }
#endif

// What is left when fewer remain: through a full one, so that no compiler makes vectors of a tail.
EDGE_INLINE void to_float16_rest(const float* x, Index count, std::uint16_t* h) {
  float in[kHalves] = {};
  std::uint16_t out[kHalves];
  __builtin_memcpy(in, x, static_cast<std::size_t>(count) * sizeof *x);
  to_float16s(in, out);
  __builtin_memcpy(h, out, static_cast<std::size_t>(count) * sizeof *h);
}
EDGE_INLINE void from_float16_rest(const std::uint16_t* h, Index count, float* x) {
  std::uint16_t in[kHalves] = {};
  float out[kHalves];
  __builtin_memcpy(in, h, static_cast<std::size_t>(count) * sizeof *h);
  from_float16s(in, out);
  __builtin_memcpy(x, out, static_cast<std::size_t>(count) * sizeof *x);
}

EDGE_INLINE std::uint16_t to_bfloat16(float x) {
  const Bits u = bits_of(x);
  const Bits rounded = (u + 0x7FFFU + (u >> 16 & 1U)) >> 16;
  return static_cast<std::uint16_t>((u & ~kSign) > kInfinity ? u >> 16 | 0x40U : rounded);
}

EDGE_INLINE Bits peak_bits(const float* x, Index count) {
  Bits peak = 0;
  for (Index i = 0; i < count; ++i) {
    const Bits u = bits_of(x[i]) & ~kSign;
    peak = u > peak ? u : peak;
  }
  return peak;
}

EDGE_INLINE double total(const double (&partial)[kPartialSums]) {
  double sums[kPartialSums];
  for (Index i = 0; i < kPartialSums; ++i) sums[i] = partial[i];
  for (Index half = kPartialSums / 2; half > 0; half /= 2) {
    for (Index i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

EDGE_INLINE void add_to(double (&partial)[kPartialSums], const float* x, bool squares) {
  for (Index i = 0; i < kPartialSums; ++i) {
    const double value = static_cast<double>(x[i]);
    partial[i] += squares ? value * value : __builtin_fabs(value);
  }
}

// Of |x|, or of squares, which are exact in double.
EDGE_INLINE double sum_of(const float* x, Index count, bool squares) {
  double partial[kPartialSums] = {};
  const Index whole = count - count % kPartialSums;
  for (Index i = 0; i < whole; i += kPartialSums) add_to(partial, x + i, squares);
  float rest[kPartialSums] = {};
  for (Index i = whole; i < count; ++i) rest[i - whole] = x[i];
  add_to(partial, rest, squares);
  return total(partial);
}

void round_nearest(const float* x, Index count, float scale, std::int8_t* q) {
  const float magic = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  for (Index i = 0; i < count; ++i) {
    const Bits shifted = bits_of(x[i] / scale + magic);
    q[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(shifted - bits_of(magic)));
  }
}

// Uniform numbers of the places first.., where `first` is even: multiples of 2^-24 below 1.
EDGE_INLINE void uniform(std::uint64_t prefix, Index first, float* u) {
  for (Index i = 0; i < kChunk / 2; ++i) {
    const std::uint64_t h = hashed(prefix, static_cast<std::uint64_t>(first / 2 + i));
    u[2 * i] = static_cast<float>(static_cast<std::int32_t>(h >> 40)) * 0x1p-24F;
    u[2 * i + 1] = static_cast<float>(static_cast<std::int32_t>(h >> 16 & 0xFFFFFF)) * 0x1p-24F;
  }
}

void round_stochastic(const QuantizeArgs& args, std::uint64_t prefix, Index begin, Index end,
                      float scale) {
  const float* x = args.x;
  std::int8_t* q = static_cast<std::int8_t*>(args.q);
  const float most = args.levels;
  float u[kChunk];
  for (Index first = begin & ~Index{1}; first < end; first += kChunk) {
    uniform(prefix, first, u);
    const Index from = larger(first, begin), to = smaller(first + kChunk, end);
    for (Index i = from; i < to; ++i) {
      const float r = __builtin_fabsf(x[i]) / scale;
      const std::int32_t below = static_cast<std::int32_t>(r);
      const float level = static_cast<float>(below);
      const float rounded = level + (u[i - first] < r - level ? 1.0F : 0.0F);
      const float kept = rounded < most ? rounded : most;  // r may be `levels` and a rounding
      q[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(x[i] < 0.0F ? -kept : kept));
    }
  }
}

EDGE_INLINE std::uint8_t signs_of(const float* x) {
#if defined(__AVX__)
  return static_cast<std::uint8_t>(_mm256_movemask_ps(_mm256_loadu_ps(x)));
#elif defined(__SSE2__)
  return static_cast<std::uint8_t>(_mm_movemask_ps(_mm_loadu_ps(x)) |
                                   _mm_movemask_ps(_mm_loadu_ps(x + 4)) << 4);
#else
  Bits byte = 0;
  for (Index i = 0; i < 8; ++i) byte |= bits_of(x[i]) >> 31 << i;
  return static_cast<std::uint8_t>(byte);
#endif
}

void pack_signs(const float* x, Index count, std::uint8_t* bytes) {
  const Index whole = count / 8;
  for (Index i = 0; i < whole; ++i) bytes[i] = signs_of(x + 8 * i);
  if (count % 8 == 0) return;
  float rest[8] = {};
  for (Index i = 8 * whole; i < count; ++i) rest[i - 8 * whole] = x[i];
  bytes[whole] = signs_of(rest);
}

EDGE_INLINE void unpack_byte(Bits byte, Bits magnitude, float* x) {
  EDGE_UNROLL for (Index i = 0; i < 8; ++i) x[i] = float_of(magnitude ^ (byte << (31 - i) & kSign));
}

void unpack_signs(const std::uint8_t* bytes, Index count, float scale, float* x) {
  const Bits magnitude = bits_of(scale);
  const Index whole = count / 8;
  for (Index i = 0; i < whole; ++i) unpack_byte(bytes[i], magnitude, x + 8 * i);
  if (count % 8 == 0) return;
  float rest[8];
  unpack_byte(bytes[whole], magnitude, rest);
  for (Index i = 8 * whole; i < count; ++i) x[i] = rest[i - 8 * whole];
}

// What a block is divided by; 0 where it is sent as zeros.
float scale_of(const QuantizeArgs& args, const float* x, Index count, Bits peak) {
  if (args.rounding == Rounding::sign) {
    return static_cast<float>(sum_of(x, count, false) / static_cast<double>(count));
  }
  float scale = float_of(peak) / args.levels;
  if (args.norm == Norm::l2) {
    const double wide = __builtin_sqrt(sum_of(x, count, true)) / static_cast<double>(args.levels);
    scale = wide < static_cast<double>(kLargest) ? static_cast<float>(wide) : kLargest;
  }
  return scale < kSmallestNormal ? 0.0F : scale;
}

void quantize_block(const QuantizeArgs& args, std::uint64_t prefix, Index begin, Index end,
                    float scale) {
  const float* x = args.x + begin;
  if (args.rounding == Rounding::sign) {
    pack_signs(x, end - begin, static_cast<std::uint8_t*>(args.q) + begin / 8);
  } else if (scale == 0.0F) {
    __builtin_memset(static_cast<std::int8_t*>(args.q) + begin, 0,
                     static_cast<std::size_t>(end - begin));
  } else if (args.rounding == Rounding::nearest) {
    round_nearest(x, end - begin, scale, static_cast<std::int8_t*>(args.q) + begin);
  } else {
    round_stochastic(args, prefix, begin, end, scale);
  }
}

}  // namespace

void convert_half(const ConvertArgs& args, const Worker& worker) {
  // 64 values a unit: no two workers write one line of the cache.
  const Share lines = share_of(ceil_div(args.n, 64), worker);
  const Index end = smaller(args.n, lines.end * 64);
  Index i = smaller(args.n, lines.begin * 64);
  switch (args.half) {
    case Half::to_float16:
      EDGE_INDEPENDENT for (; i + kHalves <= end; i += kHalves)
          to_float16s(args.x + i, args.out + i);
      if (i < end) to_float16_rest(args.x + i, end - i, args.out + i);
      break;
    case Half::from_float16:
      EDGE_INDEPENDENT for (; i + kHalves <= end; i += kHalves)
          from_float16s(args.h + i, args.y + i);
      if (i < end) from_float16_rest(args.h + i, end - i, args.y + i);
      break;
    case Half::to_bfloat16:
      EDGE_INDEPENDENT for (; i < end; ++i) args.out[i] = to_bfloat16(args.x[i]);
      break;
    case Half::from_bfloat16:
      EDGE_INDEPENDENT for (; i < end; ++i) {
        args.y[i] = float_of(static_cast<Bits>(args.h[i]) << 16);
      }
  }
}

void quantize(const QuantizeArgs& args, const Worker& worker) {
  const Share blocks = share_of(ceil_div(args.n, args.block), worker);
  const std::uint64_t prefix = mixed(args.seed + kGolden);
  args.first_bad[worker.index] = -1;
  for (Index b = blocks.begin; b < blocks.end; ++b) {
    const Index begin = b * args.block, end = smaller(args.n, begin + args.block);
    const Bits peak = peak_bits(args.x + begin, end - begin);
    if (peak >= kInfinity) {
      Index i = begin;
      while ((bits_of(args.x[i]) & ~kSign) < kInfinity) ++i;
      args.first_bad[worker.index] = i;
      return;
    }
    args.scales[b] = scale_of(args, args.x + begin, end - begin, peak);
    quantize_block(args, prefix, begin, end, args.scales[b]);
  }
}

void dequantize(const DequantizeArgs& args, const Worker& worker) {
  const Share blocks = share_of(ceil_div(args.n, args.block), worker);
  for (Index b = blocks.begin; b < blocks.end; ++b) {
    const Index begin = b * args.block, end = smaller(args.n, begin + args.block);
    const float scale = args.scales[b];
    if (args.sign) {
      unpack_signs(static_cast<const std::uint8_t*>(args.q) + begin / 8, end - begin, scale,
                   args.x + begin);
      continue;
    }
    const std::int8_t* q = static_cast<const std::int8_t*>(args.q);
    EDGE_INDEPENDENT for (Index i = begin; i < end; ++i) {
      args.x[i] = static_cast<float>(q[i]) * scale;
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
