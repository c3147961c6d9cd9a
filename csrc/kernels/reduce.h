// y[kept] = scale * sum over the reduced axes of x, float32.
//
// x is dense; y is dense over the kept axes in their order. y does not overlap x. Contiguous runs
// of up to 4096 numbers are summed in vector lanes of float32, runs in float64, columns in float64,
// so the relative error stays near 4096 / 16 * eps however long the sum is. Bytes moved: x once, y
// once.
#pragma once

#include "kernels/worker.h"

namespace edge {

// Axes were merged and split: kept axes with their strides in x, reduced axes likewise, outermost
// first.
struct ReduceArgs {
  const float* x = nullptr;
  float* y = nullptr;
  Index kept_ndim = 0, reduced_ndim = 0;  // 0..6 each
  Index kept_dims[6] = {}, kept_strides[6] = {};
  Index reduced_dims[6] = {}, reduced_strides[6] = {};
  float scale = 1.0F;
};

}  // namespace edge
