// Elementwise operations on float32.
//
//   relu:       y = x < 0 ? 0 : x          (a NaN stays a NaN, -0 stays -0)
//   relu_grad:  d_x = y > 0 ? d_y : 0      (NaN in y gives 0)
//   add, sub, mul: c = a (+ - *) b with NumPy broadcasting
//   copy:       bytes
//
// An output may be exactly one of its inputs (same address and size), never a part of it. Bytes
// moved: every operand once; a broadcast operand is read again from the cache.
#pragma once

#include "kernels/worker.h"

namespace edge {

struct UnaryArgs {
  const float* x = nullptr;
  const float* y = nullptr;  // second input, relu_grad only
  float* out = nullptr;
  Index size = 0;
};

// c is dense with dims d; a and b step by their strides (in floats, 0 = broadcast). Dimensions that
// can be merged were merged, so the last one is as long as it can be.
struct BinaryArgs {
  const float* a = nullptr;
  const float* b = nullptr;
  float* c = nullptr;
  Index ndim = 0;  // 1..6
  Index dims[6] = {};
  Index a_strides[6] = {};
  Index b_strides[6] = {};
};

struct CopyArgs {
  const unsigned char* from = nullptr;
  unsigned char* to = nullptr;
  Index bytes = 0;
};

}  // namespace edge
