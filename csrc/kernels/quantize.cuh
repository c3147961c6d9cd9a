// Values in fewer bits, and back, on a device: the contract of quantize.h, bit for bit, every array
// in device memory and of any alignment of its elements. n <= 2^31 - 1.
//
// What cannot be raised is left in memory: `first_bad` receives the place of the first value that
// is not finite, or -1; its block becomes zeros with a scale of NaN.
//
// Up to kSmallBlock values to a scale, 16 threads share one and 16 scales fill a thread block;
// larger ones have a thread block each, so a scale over a whole tensor leaves the rest of the
// device idle, and its sum, whose order is fixed, to 16 threads. Bytes moved: as quantize.h. No
// workspace.
#pragma once

#include "cuda/arithmetic.h"

namespace edge::cuda::quantizing {

constexpr int kThreads = 256;
constexpr int kPartialSums = 16;
constexpr u64 kSmallBlock = 4096;
constexpr u64 kBlocksPerProcessor = 8;
constexpr u32 kSign = 0x80000000U;
constexpr u32 kInfinity = 0x7F800000U;
constexpr u32 kSmallestNormal = 0x00800000U;
constexpr u32 kLargest = 0x7F7FFFFFU;
constexpr u32 kNan = 0x7FC00000U;

enum class Half { to_float16, from_float16, to_bfloat16, from_bfloat16 };
enum class Rounding { nearest, stochastic, sign };
enum class Norm { max, l2 };

// Exponents are 112 apart; below 2^-14, adding 1/2 rounds to multiples of 2^-24, float16's
// subnormals.
EDGE_DEVICE u16 to_float16(float x) {
  const u32 all = bits_of(x);
  const u32 u = all & ~kSign;
  u32 h = (u + 0xFFFU + (u >> 13U & 1U) - (112U << 23U)) >> 13U;
  if (u < 0x38800000U) h = bits_of(float_of(u) + 0.5F) - bits_of(0.5F);
  if (u >= 0x47800000U) h = 0x7C00U;
  if (u > kInfinity) h = 0x7E00U | (u >> 13U & 0x3FFU);
  return static_cast<u16>(h | (all >> 16U & 0x8000U));
}

EDGE_DEVICE float from_float16(u16 h) {
  const u32 u = h & 0x7FFFU;
  u32 bits = (u << 13U) + (112U << 23U);
  if (u >= 0x7C00U) bits += 112U << 23U;
  if (u > 0x7C00U) bits |= 0x400000U;
  if (u < 0x400U) bits = bits_of(static_cast<float>(u) * 5.96046448e-08F);
  return float_of(bits | (h & 0x8000U) << 16U);
}

EDGE_DEVICE u16 to_bfloat16(float x) {
  const u32 u = bits_of(x);
  const u32 rounded = (u + 0x7FFFU + (u >> 16U & 1U)) >> 16U;
  return static_cast<u16>((u & ~kSign) > kInfinity ? u >> 16U | 0x40U : rounded);
}

EDGE_DEVICE float from_bfloat16(u16 h) { return float_of(static_cast<u32>(h) << 16U); }

template <Half kHalf>
struct Convert {
  static constexpr int kThreads = quantizing::kThreads;
  static constexpr bool kNarrow = kHalf == Half::to_float16 || kHalf == Half::to_bfloat16;
  struct Args {
    const float* wide_in;
    const u16* narrow_in;
    float* wide;
    u16* narrow;
    u64 n;
  };
  struct Shared {
    u32 unused;
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared&, const Args& args) {
    const u64 step = static_cast<u64>(block.blocks()) * kThreads * 4;
    block.each([&](int thread) {
      const u64 first = (static_cast<u64>(block.index()) * kThreads + static_cast<u64>(thread)) * 4;
      for (u64 at = first; at < args.n; at += step) {
        if (kNarrow) {
          float from[4];
          u16 to[4];
          const int count =
              load_four(args.wide_in, at, args.n, aligned_for_four(args.wide_in), from);
          for (int j = 0; j < count; ++j) {
            to[j] = kHalf == Half::to_float16 ? to_float16(from[j]) : to_bfloat16(from[j]);
          }
          store_some(args.narrow, at, count, aligned_for_four(args.narrow), to);
        } else {
          u16 from[4];
          float to[4];
          const int count =
              load_four(args.narrow_in, at, args.n, aligned_for_four(args.narrow_in), from);
          for (int j = 0; j < count; ++j) {
            to[j] = kHalf == Half::from_float16 ? from_float16(from[j]) : from_bfloat16(from[j]);
          }
          store_some(args.wide, at, count, aligned_for_four(args.wide), to);
        }
      }
    });
  }
};

// In [0, 1), a multiple of 2^-24.
EDGE_DEVICE float uniform(u64 prefix, u64 place) {
  const u64 h = hashed(prefix, place / 2);
  const u32 word = static_cast<u32>(place % 2 == 0 ? h >> 40U : h >> 16U & 0xFFFFFFU);
  return static_cast<float>(word) * 0x1p-24F;
}

struct Quantize {
  static constexpr int kThreads = quantizing::kThreads;
  struct Args {
    const float* x;
    void* q;  // int8, or bits for sign
    float* scales;
    u32* first_bad;
    u64 n;
    u64 block;
    u64 prefix;  // mixed(seed + kGolden)
    float levels;
    Rounding rounding;
    Norm norm;
  };
  struct Shared {
    double sums[kThreads];
    u32 peaks[kThreads];
    float scales[kThreads / kPartialSums];
  };

  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared& shared, const Args& args) {
    const int lanes = args.block <= kSmallBlock ? kPartialSums : kThreads;
    const u64 groups = static_cast<u64>(kThreads / lanes);
    const u64 scales = ceil_div(args.n, args.block);
    for (u64 unit = block.index(); unit * groups < scales; unit += block.blocks()) {
      const auto number = [&](int thread) {
        return unit * groups + static_cast<u64>(thread / lanes);
      };
      block.each([&](int thread) { measure(block, shared, args, number(thread), thread, lanes); });
      for (int half = lanes / 2; half > 0; half /= 2) {
        block.each([&](int thread) {
          if (thread % lanes >= half) return;
          const u32 other = shared.peaks[thread + half];
          if (other > shared.peaks[thread]) shared.peaks[thread] = other;
          if (half < kPartialSums) shared.sums[thread] += shared.sums[thread + half];
        });
      }
      block.each([&](int thread) {
        if (thread % lanes != 0 || number(thread) >= scales) return;
        const u64 begin = number(thread) * args.block;
        const u64 count = args.n - begin < args.block ? args.n - begin : args.block;
        const float scale = scale_of(args, shared.peaks[thread], shared.sums[thread], count);
        shared.scales[thread / lanes] = scale;
        args.scales[number(thread)] = scale;
      });
      block.each([&](int thread) {
        if (number(thread) >= scales) return;
        round(args, number(thread), shared.scales[thread / lanes], thread % lanes, lanes);
      });
    }
  }

  // A thread's share of the largest magnitude, and for the first 16 of a scale one of its partial
  // sums.
  template <class Block>
  EDGE_DEVICE static void measure(Block& block, Shared& shared, const Args& args, u64 number,
                                  int thread, int lanes) {
    const u64 begin = number * args.block;
    const u64 end = begin + args.block < args.n ? begin + args.block : args.n;
    const u64 lane = static_cast<u64>(thread % lanes);
    u32 peak = 0;
    for (u64 i = begin + lane; i < end; i += static_cast<u64>(lanes)) {
      const u32 u = bits_of(args.x[i]) & ~kSign;
      if (u > peak) peak = u;
      if (u >= kInfinity) block.min(args.first_bad, static_cast<u32>(i));
    }
    double sum = 0.0;
    const bool squares = args.rounding != Rounding::sign;
    const bool wanted = !squares || args.norm == Norm::l2;
    for (u64 i = begin + lane; wanted && lane < kPartialSums && i < end; i += kPartialSums) {
      const double value = static_cast<double>(args.x[i]);
      sum += squares ? value * value : (value < 0.0 ? -value : value);
    }
    shared.peaks[thread] = peak;
    shared.sums[thread] = sum;
  }

  EDGE_DEVICE static float scale_of(const Args& args, u32 peak, double sum, u64 count) {
    if (peak >= kInfinity) return float_of(kNan);
    if (args.rounding == Rounding::sign)
      return static_cast<float>(sum / static_cast<double>(count));
    float scale = float_of(peak) / args.levels;
    if (args.norm == Norm::l2) {
      const double wide = root(sum) / static_cast<double>(args.levels);
      const float largest = float_of(kLargest);
      scale = wide < static_cast<double>(largest) ? static_cast<float>(wide) : largest;
    }
    return scale < float_of(kSmallestNormal) ? 0.0F : scale;
  }

  EDGE_DEVICE static void round(const Args& args, u64 number, float scale, int lane, int lanes) {
    const u64 begin = number * args.block;
    const u64 end = begin + args.block < args.n ? begin + args.block : args.n;
    const bool usable = scale > 0.0F;  // neither 0 nor NaN
    if (args.rounding == Rounding::sign) {
      auto* const bytes = static_cast<unsigned char*>(args.q);
      for (u64 at = begin + 8 * static_cast<u64>(lane); at < end;
           at += 8 * static_cast<u64>(lanes)) {
        u32 byte = 0;
        for (u64 j = 0; j < 8 && at + j < end; ++j) byte |= bits_of(args.x[at + j]) >> 31U << j;
        bytes[at / 8] = static_cast<unsigned char>(scale == scale ? byte : 0U);
      }
      return;
    }
    auto* const q = static_cast<signed char*>(args.q);
    for (u64 i = begin + static_cast<u64>(lane); i < end; i += static_cast<u64>(lanes)) {
      const int level = !usable                              ? 0
                        : args.rounding == Rounding::nearest ? nearest(args.x[i] / scale)
                                                             : stochastic(args, i, scale);
      q[i] = static_cast<signed char>(level);
    }
  }

  // Adding 1.5 2^23 rounds to an integer.
  EDGE_DEVICE static int nearest(float r) {
    constexpr float kMagic = 12582912.0F;
    return static_cast<int>(bits_of(r + kMagic) - bits_of(kMagic));
  }

  EDGE_DEVICE static int stochastic(const Args& args, u64 place, float scale) {
    const float x = args.x[place];
    const float r = float_of(bits_of(x) & ~kSign) / scale;
    const float level = static_cast<float>(static_cast<int>(r));
    const float rounded = level + (uniform(args.prefix, place) < r - level ? 1.0F : 0.0F);
    const float kept =
        rounded < args.levels ? rounded : args.levels;  // r may be `levels` and a rounding
    return static_cast<int>(x < 0.0F ? -kept : kept);
  }
};

struct Dequantize {
  static constexpr int kThreads = quantizing::kThreads;
  struct Args {
    const void* q;
    const float* scales;
    float* x;
    u64 n;
    u64 block;
    bool sign;
  };
  struct Shared {
    u32 unused;
  };
  template <class Block>
  EDGE_DEVICE static void run(Block& block, Shared&, const Args& args) {
    const u64 step = static_cast<u64>(block.blocks()) * kThreads;
    block.each([&](int thread) {
      const u64 first = static_cast<u64>(block.index()) * kThreads + static_cast<u64>(thread);
      for (u64 i = first; i < args.n; i += step) {
        const float scale = args.scales[i / args.block];
        if (args.sign) {
          const u32 byte = static_cast<const unsigned char*>(args.q)[i / 8];
          args.x[i] = float_of(bits_of(scale) ^ (byte << (31 - i % 8) & kSign));
        } else {
          args.x[i] = static_cast<float>(static_cast<const signed char*>(args.q)[i]) * scale;
        }
      }
    });
  }
};

template <class Launcher>
u64 grid(const Launcher& launcher, u64 units) {
  const u64 most = launcher.processors() * kBlocksPerProcessor;
  return units < most ? units : most;
}

template <Half kHalf, class Launcher>
void convert(Launcher& launcher, const typename Convert<kHalf>::Args& args) {
  if (args.n == 0) return;
  launcher.template launch<Convert<kHalf>>(grid(launcher, ceil_div(args.n, 4 * kThreads)), args);
}

// `seed` counts for stochastic alone.
template <class Launcher>
void quantize(Launcher& launcher, Quantize::Args args, u64 seed) {
  args.prefix = mixed(seed + kGolden);
  launcher.fill(args.first_bad, 0xFF, sizeof(u32));
  if (args.n == 0) return;
  const u64 groups = args.block <= kSmallBlock ? kThreads / kPartialSums : 1;
  const u64 scales = ceil_div(args.n, args.block);
  launcher.template launch<Quantize>(grid(launcher, ceil_div(scales, groups)), args);
}

template <class Launcher>
void dequantize(Launcher& launcher, const Dequantize::Args& args) {
  if (args.n == 0) return;
  launcher.template launch<Dequantize>(grid(launcher, ceil_div(args.n, kThreads)), args);
}

}  // namespace edge::cuda::quantizing
