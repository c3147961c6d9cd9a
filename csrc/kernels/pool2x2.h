// Max pooling over 2 x 2 windows with stride 2 and no padding, the case of nearly every small
// network: a row of windows at a time, in vectors of 4, 8 or 16 windows. The last vector of a row
// overlaps the one before, so a row needs no tail. Internal linkage.
#pragma once

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

#define EDGE_STRIP(...) __VA_ARGS__
// even/odd: every second float of 2 N neighbours; low/high: two vectors interleaved.
#define EDGE_LANES(N, EVEN, ODD, LOW, HIGH)                        \
  struct Lanes##N {                                                \
    static constexpr Index count = N;                              \
    typedef float Floats __attribute__((vector_size(4 * N)));      \
    typedef std::int32_t Ints __attribute__((vector_size(4 * N))); \
    typedef std::uint8_t Bytes __attribute__((vector_size(N)));    \
    static Floats even(Floats a, Floats b) {                       \
      return __builtin_shufflevector(a, b, EDGE_STRIP EVEN);       \
    }                                                              \
    static Floats odd(Floats a, Floats b) {                        \
      return __builtin_shufflevector(a, b, EDGE_STRIP ODD);        \
    }                                                              \
    static Floats low(Floats a, Floats b) {                        \
      return __builtin_shufflevector(a, b, EDGE_STRIP LOW);        \
    }                                                              \
    static Floats high(Floats a, Floats b) {                       \
      return __builtin_shufflevector(a, b, EDGE_STRIP HIGH);       \
    }                                                              \
  }
EDGE_LANES(4, (0, 2, 4, 6), (1, 3, 5, 7), (0, 4, 1, 5), (2, 6, 3, 7));
#if EDGE_VECTOR_FLOATS >= 8
EDGE_LANES(8, (0, 2, 4, 6, 8, 10, 12, 14), (1, 3, 5, 7, 9, 11, 13, 15), (0, 8, 1, 9, 2, 10, 3, 11),
           (4, 12, 5, 13, 6, 14, 7, 15));
#endif
#if EDGE_VECTOR_FLOATS >= 16
EDGE_LANES(16, (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
           (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31),
           (0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
           (8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#endif
#undef EDGE_LANES

template <class V>
EDGE_INLINE V get(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
EDGE_INLINE void put(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Strictly better, so the first maximum stays; a NaN beats every number and is beaten by nothing.
template <class L>
EDGE_INLINE void keep_better(typename L::Floats value, std::int32_t number,
                             typename L::Floats& best, typename L::Ints& index) {
  const typename L::Ints better = (value > best) | ((value != value) & (best == best));
  best = better ? value : best;
  index = better ? number - typename L::Ints{} : index;
}

template <class L>
void maxpool_row_2x2(const float* top, const float* bottom, Index width, float* y,
                     std::uint8_t* index8) {
  using Floats = typename L::Floats;
  for (Index j = 0; j < width; j += L::count) {
    const Index at = smaller(j, width - L::count);
    const Floats a = get<Floats>(top + 2 * at), b = get<Floats>(top + 2 * at + L::count);
    const Floats c = get<Floats>(bottom + 2 * at), d = get<Floats>(bottom + 2 * at + L::count);
    Floats best = L::even(a, b);
    typename L::Ints index = {};
    keep_better<L>(L::odd(a, b), 1, best, index);
    keep_better<L>(L::even(c, d), 2, best, index);
    keep_better<L>(L::odd(c, d), 3, best, index);
    put(y + at, best);
    put(index8 + at, __builtin_convertvector(index, typename L::Bytes));
  }
}

template <class L>
void maxpool_grad_row_2x2(const float* d_y, const std::uint8_t* index8, Index width, float* top,
                          float* bottom) {
  using Floats = typename L::Floats;
  for (Index j = 0; j < width; j += L::count) {
    const Index at = smaller(j, width - L::count);
    const Floats d = get<Floats>(d_y + at), zero = {};
    const auto index =
        __builtin_convertvector(get<typename L::Bytes>(index8 + at), typename L::Ints);
    const Floats a = index == 0 ? d : zero, b = index == 1 ? d : zero;
    const Floats e = index == 2 ? d : zero, f = index == 3 ? d : zero;
    put(top + 2 * at, L::low(a, b));
    put(top + 2 * at + L::count, L::high(a, b));
    put(bottom + 2 * at, L::low(e, f));
    put(bottom + 2 * at + L::count, L::high(e, f));
  }
}

EDGE_INLINE bool is_2x2(const PoolArgs& a) {
  return a.kernel_h == 2 && a.kernel_w == 2 && a.stride_h == 2 && a.stride_w == 2 &&
         a.dilation_h == 1 && a.dilation_w == 1 && a.pad_top == 0 && a.pad_left == 0 &&
         a.out_width >= 4 && 2 * a.out_height <= a.height && 2 * a.out_width <= a.width &&
         a.index8 != nullptr;
}

EDGE_INLINE void maxpool_2x2(const PoolArgs& a, Index plane) {
  for (Index i = 0; i < a.out_height; ++i) {
    const float* top = a.in + (plane * a.height + 2 * i) * a.width;
    const Index to = (plane * a.out_height + i) * a.out_width;
#if EDGE_VECTOR_FLOATS >= 16
    if (a.out_width >= 16) {
      maxpool_row_2x2<Lanes16>(top, top + a.width, a.out_width, a.out + to, a.index8 + to);
      continue;
    }
#endif
#if EDGE_VECTOR_FLOATS >= 8
    if (a.out_width >= 8) {
      maxpool_row_2x2<Lanes8>(top, top + a.width, a.out_width, a.out + to, a.index8 + to);
      continue;
    }
#endif
    maxpool_row_2x2<Lanes4>(top, top + a.width, a.out_width, a.out + to, a.index8 + to);
  }
}

EDGE_INLINE void maxpool_grad_2x2(const PoolArgs& a, Index plane) {
  float* d_x = a.out + plane * a.height * a.width;
  for (Index i = 0; i < a.out_height; ++i) {
    float* top = d_x + 2 * i * a.width;
    const Index from = (plane * a.out_height + i) * a.out_width;
#if EDGE_VECTOR_FLOATS >= 16
    if (a.out_width >= 16) {
      maxpool_grad_row_2x2<Lanes16>(a.in + from, a.index8 + from, a.out_width, top, top + a.width);
    } else
#endif
#if EDGE_VECTOR_FLOATS >= 8
        if (a.out_width >= 8) {
      maxpool_grad_row_2x2<Lanes8>(a.in + from, a.index8 + from, a.out_width, top, top + a.width);
    } else
#endif
    {
      maxpool_grad_row_2x2<Lanes4>(a.in + from, a.index8 + from, a.out_width, top, top + a.width);
    }
    for (Index j = 2 * a.out_width; j < a.width; ++j) top[j] = top[a.width + j] = 0.0F;
  }
  for (Index i = 2 * a.out_height * a.width; i < a.height * a.width; ++i) d_x[i] = 0.0F;
}

}  // namespace EDGE_ISA
}  // namespace edge
