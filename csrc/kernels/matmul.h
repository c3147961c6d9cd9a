// c[i] = A[i] B[i] for every i of a batch: gemm.h on many matrices, the batch dimensions of a and b
// broadcast. Scratch as one gemm. Each c is summed as in gemm.
#pragma once

#include "kernels/gemm.h"

namespace edge {

struct MatmulArgs {
  GemmArgs gemm;   // of the first matrices
  Index ndim = 0;  // batch dimensions, 1..4
  Index dims[4] = {};
  Index a_strides[4] = {}, b_strides[4] = {};  // in floats, 0 where an operand is repeated
};

}  // namespace edge
