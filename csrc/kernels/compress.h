// Packing the lanes that a mask names to the front, one instruction set at a time: what the vector
// extensions have no word for. Internal linkage, as everything in simd.h.
#pragma once

#include "kernels/simd.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edge {
namespace EDGE_ISA {

typedef std::uint32_t WordVec __attribute__((vector_size(EDGE_VECTOR_FLOATS * 4)));
typedef std::uint32_t UnalignedWordVec
    __attribute__((vector_size(EDGE_VECTOR_FLOATS * 4), aligned(4), may_alias));

EDGE_INLINE WordVec load_words(const std::uint32_t* p) {
  return *reinterpret_cast<const UnalignedWordVec*>(p);
}
EDGE_INLINE void store_words(std::uint32_t* p, WordVec v) {
  *reinterpret_cast<UnalignedWordVec*>(p) = v;
}
EDGE_INLINE WordVec splat_word(std::uint32_t x) { return x - WordVec{}; }
EDGE_INLINE WordVec larger_words(WordVec a, WordVec b) { return a > b ? a : b; }

// 0, 1, 2, ...
EDGE_INLINE WordVec lane_numbers() {
  WordVec v = {};
  for (Index i = 0; i < kLanes; ++i) v[i] = static_cast<std::uint32_t>(i);
  return v;
}

// Bit i: lane i of a is at least, or equal to, lane i of b. Lanes are below 2^31.
#if defined(__AVX512F__)

EDGE_INLINE unsigned at_least(WordVec a, WordVec b) {
  return _mm512_cmpge_epu32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
EDGE_INLINE unsigned equal_to(WordVec a, WordVec b) {
  return _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}

#elif defined(__AVX2__)

EDGE_INLINE unsigned sign_bits(__m256i v) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(v)));
}
EDGE_INLINE unsigned at_least(WordVec a, WordVec b) {
  return 0xFFU ^
         sign_bits(_mm256_cmpgt_epi32(reinterpret_cast<__m256i>(b), reinterpret_cast<__m256i>(a)));
}
EDGE_INLINE unsigned equal_to(WordVec a, WordVec b) {
  return sign_bits(_mm256_cmpeq_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

#else

EDGE_INLINE unsigned low_bits(WordVec mask) {
  const WordVec weights = {1, 2, 4, 8};
  const WordVec bits = mask & weights;
  return bits[0] | bits[1] | bits[2] | bits[3];
}
EDGE_INLINE unsigned at_least(WordVec a, WordVec b) {
  return low_bits(reinterpret_cast<WordVec>(a >= b));
}
EDGE_INLINE unsigned equal_to(WordVec a, WordVec b) {
  return low_bits(reinterpret_cast<WordVec>(a == b));
}

#endif

// How many of the low kLanes bits are set.
EDGE_INLINE Index set_bits(unsigned mask) {
#if defined(__AVX2__)
  return __builtin_popcount(mask);
#else
  return 0x4332322132212110U >> (mask * 4) & 0xFU;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)

struct LaneOrders {
  std::uint64_t order[256];  // a byte a lane: which lane comes there
};

constexpr LaneOrders lane_orders() {
  LaneOrders table = {};
  for (unsigned mask = 0; mask < 256; ++mask) {
    unsigned place = 0;
    for (unsigned lane = 0; lane < 8; ++lane) {
      if ((mask >> lane & 1U) != 0) {
        table.order[mask] |= static_cast<std::uint64_t>(lane) << (8 * place);
        ++place;
      }
    }
  }
  return table;
}

constexpr LaneOrders kLaneOrders = lane_orders();

#elif defined(__aarch64__)

struct LaneOrders {
  std::uint8_t order[16][16];  // a byte a byte
};

constexpr LaneOrders lane_orders() {
  LaneOrders table = {};
  for (unsigned mask = 0; mask < 16; ++mask) {
    unsigned place = 0;
    for (unsigned lane = 0; lane < 4; ++lane) {
      if ((mask >> lane & 1U) != 0) {
        for (unsigned byte = 0; byte < 4; ++byte)
          table.order[mask][4 * place + byte] = static_cast<std::uint8_t>(4 * lane + byte);
        ++place;
      }
    }
  }
  return table;
}

constexpr LaneOrders kLaneOrders = lane_orders();

#endif

// Writes the words of the mask's lanes at p, in order, then anything up to kLanes in all.
EDGE_INLINE void store_packed(std::uint32_t* p, WordVec v, unsigned mask) {
#if defined(__AVX512F__)
  // In a register first: compressing into memory takes a microcoded path on AMD's Zen 4.
  const __m512i packed =
      _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), reinterpret_cast<__m512i>(v));
  // Half a vector meets the end of a line half as often, and is mostly enough.
  // The cast intrinsic starts from an undefined value, of which gcc 12 warns under its sanitizers.
  if (set_bits(mask) <= kLanes / 2)
    __builtin_memcpy(p, &packed, sizeof(__m256i));
  else
    store_words(p, reinterpret_cast<WordVec>(packed));
#elif defined(__AVX2__)
  const __m256i order =
      _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(kLaneOrders.order[mask])));
  store_words(p, reinterpret_cast<WordVec>(
                     _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(v), order)));
#elif defined(__aarch64__)
  const uint8x16_t packed =
      vqtbl1q_u8(reinterpret_cast<uint8x16_t>(v), vld1q_u8(kLaneOrders.order[mask]));
  store_words(p, reinterpret_cast<WordVec>(packed));
#else
  Index place = 0;
  for (Index lane = 0; lane < kLanes; ++lane) {
    p[place] = v[lane];
    place += mask >> lane & 1U;
  }
#endif
}

}  // namespace EDGE_ISA
}  // namespace edge
