// exp, log, tanh, sigmoid, erf and softplus on vectors. The polynomials are minimax fits of our own
// (Lawson's iteration in float64, then rounded); each comment gives the fit's relative error.
// Internal linkage, as everything in simd.h.
#pragma once

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

typedef std::int32_t IntVec __attribute__((vector_size(EDGE_VECTOR_FLOATS * 4)));

EDGE_INLINE IntVec bits_of(Vec v) { return reinterpret_cast<IntVec>(v); }
EDGE_INLINE Vec floats_of(IntVec v) { return reinterpret_cast<Vec>(v); }
EDGE_INLINE Vec select(IntVec mask, Vec yes, Vec no) {
  return floats_of((mask & bits_of(yes)) | (~mask & bits_of(no)));
}
EDGE_INLINE Vec abs_of(Vec x) { return floats_of(bits_of(x) & 0x7FFFFFFF); }
EDGE_INLINE Vec with_sign_of(Vec magnitude, Vec sign) {
  return floats_of(bits_of(magnitude) | (bits_of(sign) & static_cast<std::int32_t>(0x80000000U)));
}

// e^r for |r| <= ln 2 / 2, to 3.1e-9.
EDGE_INLINE Vec exp_near_zero(Vec r) {
  Vec p = splat(0.00138145965F);
  p = p * r + 0.00836871751F;
  p = p * r + 0.0416683890F;
  p = p * r + 0.166665211F;
  p = p * r + 0.49999994F;
  return (p * (r * r) + r) + 1.0F;
}

// x = n ln 2 + r, |r| <= ln 2 / 2; e^r, then n into the exponent.
EDGE_INLINE Vec exp_of(Vec x) {
  // Beyond these the result is 0 or infinity anyway.
  const Vec low = splat(-87.33654F), high = splat(88.72284F);
  Vec inside = select(x < low, low, x);
  inside = select(inside > high, high, inside);
  inside = select(x != x, Vec{}, inside);  // a NaN has no exponent to shift
  const Vec magic = splat(12582912.0F);    // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = inside * 1.44269504F + magic;
  const Vec n = shifted - magic;
  const Vec r = (inside - n * 0.693359375F) - n * -0.000212194440F;
  const Vec fraction = exp_near_zero(r);
  // In two factors: 2^128 alone is no float.
  const IntVec exponent = bits_of(shifted) - bits_of(magic);
  const IntVec half = exponent >> 1;
  const Vec first = floats_of((half + 127) << 23),
            second = floats_of((exponent - half + 127) << 23);
  Vec y = fraction * first * second;
  y = select(x < low, Vec{}, y);
  y = select(x > high, splat(__builtin_inff()), y);
  return select(x != x, x, y);
}

// log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1], to 7.5e-10.
EDGE_INLINE Vec log_near_one(Vec f, Vec exponent) {
  Vec p = splat(0.0674660131F);
  p = p * f + -0.116756409F;
  p = p * f + 0.118881747F;
  p = p * f + -0.124055915F;
  p = p * f + 0.142195508F;
  p = p * f + -0.166679963F;
  p = p * f + 0.200021192F;
  p = p * f + -0.250000089F;
  p = p * f + 0.333333135F;
  const Vec square = f * f;
  const Vec small = (p * f * square - 0.5F * square) + exponent * -0.000212194440F;
  return (small + f) + exponent * 0.693359375F;
}

// x = 2^e m, m in [sqrt(1/2), sqrt(2)). Subnormal x is scaled up first.
EDGE_INLINE Vec log_of(Vec x) {
  const IntVec tiny = x < splat(1.17549435e-38F);
  const Vec scaled = select(tiny, x * 8388608.0F, x);
  const IntVec bits = bits_of(scaled);
  IntVec e = ((bits >> 23) & 0xFF) - 126;
  const Vec m = floats_of((bits & 0x007FFFFF) | 0x3F000000);  // [1/2, 1)
  const IntVec below = m < splat(0.707106781F);
  e += below;  // a true lane is -1
  const Vec f = select(below, m + m, m) - 1.0F;
  const Vec exponent = __builtin_convertvector(e, Vec) - select(tiny, splat(23.0F), Vec{});
  Vec y = log_near_one(f, exponent);
  y = select(x == splat(__builtin_inff()), x, y);
  y = select(x == Vec{}, splat(-__builtin_inff()), y);
  y = select(x < Vec{}, splat(__builtin_nanf("")), y);
  return select(x != x, x, y);
}

// |x| < 0.625: x + x^3 P(x^2) to 4.4e-9; else 1 - 2 / (e^2|x| + 1).
EDGE_INLINE Vec tanh_of(Vec x) {
  const Vec size = abs_of(x), square = x * x;
  Vec p = splat(-0.00570497848F);
  p = p * square + 0.0206390787F;
  p = p * square + -0.0537397116F;
  p = p * square + 0.133314416F;
  p = p * square + -0.333332807F;
  const Vec near = p * square * x + x;
  const Vec far = 1.0F - 2.0F / (exp_of(size + size) + 1.0F);
  return select(size < splat(0.625F), near, with_sign_of(far, x));
}

// By e^-|x|, which cannot overflow.
EDGE_INLINE Vec sigmoid_of(Vec x) {
  const Vec e = exp_of(-abs_of(x));
  return select(x < Vec{}, e, splat(1.0F)) / (1.0F + e);
}

// e^x where it is a normal number, -87 < x < 88: no edge to look after. A NaN stays a NaN.
EDGE_INLINE Vec exp_normal(Vec x) {
  const Vec magic = splat(12582912.0F);
  const Vec shifted = x * 1.44269504F + magic;
  const Vec n = shifted - magic;
  const Vec r = (x - n * 0.693359375F) - n * -0.000212194440F;
  const IntVec exponent = bits_of(shifted) - bits_of(magic);
  return exp_near_zero(r) * floats_of((exponent + 127) << 23);
}

// |x| < 1: x + x P(x^2) to 1.2e-9; up to 4: 1 - exp(-Q(|x|)) to 3.1e-11; beyond, 1 is nearest.
EDGE_INLINE Vec erf_of(Vec x) {
  const Vec size = abs_of(x), square = x * x;
  Vec p = splat(7.85385782e-05F);
  p = p * square + -0.000801019254F;
  p = p * square + 0.00518832775F;
  p = p * square + -0.026853811F;
  p = p * square + 0.112835854F;
  p = p * square + -0.37612626F;
  p = p * square + 0.128379166F;
  const Vec near = p * x + x;
  const Vec t = select(size > splat(4.0F), splat(4.0F), size);
  Vec q = splat(2.14455922e-05F);
  q = q * t + -0.000438530202F;
  q = q * t + 0.00419085706F;
  q = q * t + -0.0251718126F;
  q = q * t + 0.108361557F;
  q = q * t + 0.633272409F;
  q = q * t + 1.12955201F;
  q = q * t + -0.000182460484F;
  const Vec far = 1.0F - exp_normal(-q);
  return select(size < splat(1.0F), near, with_sign_of(far, x));
}

// max(x, 0) + log(1 + e^-|x|). With u = 1 + e rounded, log(u) e / (u - 1) mends what rounding took
// from e.
EDGE_INLINE Vec softplus_of(Vec x) {
  const Vec e = exp_of(-abs_of(x));
  const Vec u = 1.0F + e;
  const IntVec lost = u == splat(1.0F);
  const Vec log1p = select(lost, e, log_of(u) * (e / select(lost, splat(1.0F), u - 1.0F)));
  return select(x > Vec{}, x, Vec{}) + select(x != x, x, log1p);
}

}  // namespace EDGE_ISA
}  // namespace edge
