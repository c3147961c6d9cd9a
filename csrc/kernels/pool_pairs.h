// Max pooling over 2 x 2 windows with stride 2, or pairs of a signal, without padding: the case of
// nearly every small network. A row of windows at a time, in vectors of 4, 8 or 16 windows. The
// last vector of a row overlaps the one before, so a row needs no tail. Internal linkage.
#pragma once

#include "kernels/lanes.h"

namespace edge {
namespace EDGE_ISA {

// Strictly better, so the first maximum stays; a NaN beats every number and is beaten by nothing.
template <class L>
EDGE_INLINE void keep_better(typename L::Floats value, std::int32_t number,
                             typename L::Floats& best, typename L::Ints& index) {
  const typename L::Ints better = (value > best) | ((value != value) & (best == best));
  best = better ? value : best;
  index = better ? number - typename L::Ints{} : index;
}

// ROWS is the height of the windows, 1 or 2.
template <class L, int ROWS>
void maxpool_pairs_row(const float* top, Index pitch, Index width, float* y, std::uint8_t* index8) {
  using Floats = typename L::Floats;
  for (Index j = 0; j < width; j += L::count) {
    const Index at = smaller(j, width - L::count);
    const Floats a = get<Floats>(top + 2 * at), b = get<Floats>(top + 2 * at + L::count);
    Floats best = L::even(a, b);
    typename L::Ints index = {};
    keep_better<L>(L::odd(a, b), 1, best, index);
    if (ROWS == 2) {
      const float* bottom = top + pitch + 2 * at;
      const Floats c = get<Floats>(bottom), d = get<Floats>(bottom + L::count);
      keep_better<L>(L::even(c, d), 2, best, index);
      keep_better<L>(L::odd(c, d), 3, best, index);
    }
    put(y + at, best);
    put(index8 + at, __builtin_convertvector(index, typename L::Bytes));
  }
}

template <class L, int ROWS>
void maxpool_grad_pairs_row(const float* d_y, const std::uint8_t* index8, Index width, float* top,
                            Index pitch) {
  using Floats = typename L::Floats;
  for (Index j = 0; j < width; j += L::count) {
    const Index at = smaller(j, width - L::count);
    const Floats d = get<Floats>(d_y + at), zero = {};
    const auto index =
        __builtin_convertvector(get<typename L::Bytes>(index8 + at), typename L::Ints);
    for (int row = 0; row < ROWS; ++row) {
      const Floats even = index == 2 * row ? d : zero, odd = index == 2 * row + 1 ? d : zero;
      put(top + row * pitch + 2 * at, L::low(even, odd));
      put(top + row * pitch + 2 * at + L::count, L::high(even, odd));
    }
  }
}

EDGE_INLINE bool takes_pairs(const PoolArgs& a) {
  return a.kernel_h <= 2 && a.kernel_w == 2 && a.stride_h == a.kernel_h && a.stride_w == 2 &&
         a.dilation_h == 1 && a.dilation_w == 1 && a.pad_top == 0 && a.pad_left == 0 &&
         a.out_width >= 4 && a.kernel_h * a.out_height <= a.height && 2 * a.out_width <= a.width &&
         a.index8 != nullptr;
}

// The widest vector that a row of windows fills.
#if EDGE_VECTOR_FLOATS >= 16
#define EDGE_BY_WIDTH(width, FUNCTION, ROWS, ...)        \
  ((width) >= 16  ? FUNCTION<Lanes16, ROWS>(__VA_ARGS__) \
   : (width) >= 8 ? FUNCTION<Lanes8, ROWS>(__VA_ARGS__)  \
                  : FUNCTION<Lanes4, ROWS>(__VA_ARGS__))
#elif EDGE_VECTOR_FLOATS >= 8
#define EDGE_BY_WIDTH(width, FUNCTION, ROWS, ...) \
  ((width) >= 8 ? FUNCTION<Lanes8, ROWS>(__VA_ARGS__) : FUNCTION<Lanes4, ROWS>(__VA_ARGS__))
#else
#define EDGE_BY_WIDTH(width, FUNCTION, ROWS, ...) FUNCTION<Lanes4, ROWS>(__VA_ARGS__)
#endif

template <int ROWS>
void maxpool_pairs(const PoolArgs& a, Index plane) {
  for (Index i = 0; i < a.out_height; ++i) {
    const float* top = a.in + (plane * a.height + ROWS * i) * a.width;
    const Index to = (plane * a.out_height + i) * a.out_width;
    EDGE_BY_WIDTH(a.out_width, maxpool_pairs_row, ROWS, top, a.width, a.out_width, a.out + to,
                  a.index8 + to);
  }
}

template <int ROWS>
void maxpool_grad_pairs(const PoolArgs& a, Index plane) {
  float* d_x = a.out + plane * a.height * a.width;
  for (Index i = 0; i < a.out_height; ++i) {
    float* top = d_x + ROWS * i * a.width;
    const Index from = (plane * a.out_height + i) * a.out_width;
    EDGE_BY_WIDTH(a.out_width, maxpool_grad_pairs_row, ROWS, a.in + from, a.index8 + from,
                  a.out_width, top, a.width);
    for (Index row = 0; row < ROWS; ++row) {
      for (Index j = 2 * a.out_width; j < a.width; ++j) top[row * a.width + j] = 0.0F;
    }
  }
  for (Index i = ROWS * a.out_height * a.width; i < a.height * a.width; ++i) d_x[i] = 0.0F;
}
#undef EDGE_BY_WIDTH

}  // namespace EDGE_ISA
}  // namespace edge
