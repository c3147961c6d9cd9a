// y = f(x) elementwise, float32; y may be exactly x.
//
// Largest error against float64, in units in the last place of the float32 result (tests hold every
// instruction set to these): exp 2, log 2, sqrt and reciprocal 1, tanh 3, sigmoid 3, erf 3,
// softplus 3; the others are exact but sin and cos, which are libm's. exp overflows to infinity
// above 88.73 and is 0 below -87.34 (results that would be subnormal are 0); a NaN stays a NaN.
// Bytes moved: x and y once.
#pragma once

#include "kernels/worker.h"

namespace edge {

// The numbers of the plan format.
enum class UnaryFunction : std::int32_t {
  exp,
  log,
  sqrt,
  reciprocal,
  tanh,
  sigmoid,
  erf,
  softplus,
  abs,
  sign,
  floor,
  ceil,
  round,  // half to even
  sin,
  cos,
};
constexpr std::int32_t kUnaryFunctions = 15;

struct MapArgs {
  const float* x = nullptr;
  float* y = nullptr;
  Index size = 0;
  UnaryFunction function = UnaryFunction::exp;
};

}  // namespace edge
