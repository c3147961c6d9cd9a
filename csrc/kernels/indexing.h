// Moving elements to other places.
//
//   strided_copy: y = fill (or base) everywhere, then a box of places of x over a box of places of
//                 y. No two places of the box are one place of y. y may be exactly base, never x.
//   gather:       x (outer, n, inner), index (k) or (outer, k, inner) -> y (outer, k, inner): the
//                 element, or the whole inner row, that the index names along the axis; 0 where it
//                 is not in 0..n-1.
//   scatter_add:  the adjoint: every d_y is added to the place its index names, by increasing k;
//                 nothing where it is not in 0..n-1.
//   cast:         between float32, int32 and uint8; from float32 towards zero, beyond the range the
//                 nearest end of it, NaN to 0; int32 to uint8 keeps the range alike.
//   cumsum:       running sums along an axis, in float64.
//
// 4-byte elements unless said. Bytes moved: every operand once; strided_copy writes the box's
// places of y twice.
#pragma once

#include "kernels/worker.h"

namespace edge {

struct StridedCopyArgs {
  const std::uint32_t* x = nullptr;     // at the first place of the box
  const std::uint32_t* base = nullptr;  // null: fill
  std::uint32_t* y = nullptr;
  std::uint32_t fill = 0;  // the bits
  Index size = 0;          // of y
  Index y_offset = 0;      // of the first place of the box
  bool covers = false;     // every place of y lies in the box
  Index ndim = 0;          // 1..6
  Index dims[6] = {}, x_strides[6] = {}, y_strides[6] = {};
};

struct GatherArgs {
  const float* x = nullptr;  // scatter_add: d_y
  const std::int32_t* index = nullptr;
  float* y = nullptr;  // scatter_add: d_x
  Index outer = 0, n = 0, k = 0, inner = 0;
  bool elements = false;  // the index has one entry an element, not one a row
};

enum class Element { float32, int32, uint8 };

struct CastArgs {
  const void* x = nullptr;
  void* y = nullptr;
  Element from = Element::float32, to = Element::float32;
  Index size = 0;
};

struct CumsumArgs {
  const float* x = nullptr;
  float* y = nullptr;
  Index outer = 0, size = 0, inner = 0;
  bool exclusive = false, reverse = false;
};

}  // namespace edge
