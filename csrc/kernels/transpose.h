// y[i0, i1, ...] = x at the permuted place: axis j of y walks through x with strides[j]. float32, y
// dense, no overlap. Bytes moved: x once (in lines of the cache, when the walk is not along them),
// y once.
#pragma once

#include "kernels/worker.h"

namespace edge {

struct TransposeArgs {
  const float* x = nullptr;
  float* y = nullptr;
  Index ndim = 0;  // 1..6
  Index dims[6] = {};
  Index strides[6] = {};  // in floats, through x
};

}  // namespace edge
