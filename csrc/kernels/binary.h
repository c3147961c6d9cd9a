// Elementwise functions of two or three float32 operands with NumPy broadcasting.
//
//   div a / b, pow a^b (libm's), min, max (a NaN wins), equal, less, less_equal (1 where true, else
//   0; false for a NaN); where: c != 0 ? a : b (a NaN is not 0).
//
// The output may be exactly an operand of its own shape. Bytes moved: every operand once; a
// broadcast operand is read again from the cache.
#pragma once

#include "kernels/worker.h"

namespace edge {

// The numbers of the plan format.
enum class BinaryFunction : std::int32_t { div, pow, min, max, equal, less, less_equal };
constexpr std::int32_t kBinaryFunctions = 7;

// out is dense with dims d; each operand steps by its strides (in floats, 0 = repeated). Dimensions
// that can be merged were merged.
struct BroadcastArgs {
  const float* in[3] = {};
  float* out = nullptr;
  Index ndim = 0;  // 1..6
  Index dims[6] = {};
  Index strides[3][6] = {};
  BinaryFunction function = BinaryFunction::div;
};

}  // namespace edge
