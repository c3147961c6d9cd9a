// The loops of one step of a map: a function over a tile of registers. Internal linkage, as
// everything in simd.h.
//
// A row is walked in whole vectors: what lies behind its end is computed too and overwritten by the
// next row, or lies in the padding of the register. So an output is never one of its operands.
#pragma once

#include "kernels/map.h"
#include "kernels/vmath.h"

namespace edge {
namespace EDGE_ISA {

namespace {

template <float (*F)(float)>
EDGE_INLINE Vec each(Vec x) {
  float lanes[EDGE_VECTOR_FLOATS];
  store(lanes, x);
  for (Index i = 0; i < kLanes; ++i) lanes[i] = F(lanes[i]);
  return load(lanes);
}

#define EDGE_SCALAR(name, expression) \
  EDGE_INLINE float name(float x) { return expression; }
EDGE_SCALAR(float_sqrt, __builtin_sqrtf(x))
EDGE_SCALAR(float_floor, __builtin_floorf(x))
EDGE_SCALAR(float_ceil, __builtin_ceilf(x))
EDGE_SCALAR(float_round, __builtin_rintf(x))  // the default mode rounds half to even
EDGE_SCALAR(float_sin, __builtin_sinf(x))
EDGE_SCALAR(float_cos, __builtin_cosf(x))
#undef EDGE_SCALAR

EDGE_INLINE Vec truth(IntVec mask) { return floats_of(mask & bits_of(splat(1.0F))); }

#define EDGE_ONE(name, expression)                      \
  struct name {                                         \
    EDGE_INLINE Vec apply(Vec x) { return expression; } \
  };
EDGE_ONE(Exp, exp_of(x))
EDGE_ONE(Log, log_of(x))
EDGE_ONE(Sqrt, each<float_sqrt>(x))
EDGE_ONE(Reciprocal, 1.0F / x)
EDGE_ONE(Tanh, tanh_of(x))
EDGE_ONE(Sigmoid, sigmoid_of(x))
EDGE_ONE(Erf, erf_of(x))
EDGE_ONE(Softplus, softplus_of(x))
EDGE_ONE(Abs, abs_of(x))
EDGE_ONE(Sign, select(x > Vec{}, splat(1.0F), select(x < Vec{}, splat(-1.0F), x)))
EDGE_ONE(Floor, each<float_floor>(x))
EDGE_ONE(Ceil, each<float_ceil>(x))
EDGE_ONE(Round, each<float_round>(x))
EDGE_ONE(Sin, each<float_sin>(x))
EDGE_ONE(Cos, each<float_cos>(x))
EDGE_ONE(Relu, select(x < Vec{}, Vec{}, x))
#undef EDGE_ONE

#define EDGE_TWO(name, expression)                             \
  struct name {                                                \
    EDGE_INLINE Vec apply(Vec a, Vec b) { return expression; } \
  };
EDGE_TWO(Div, a / b)
EDGE_TWO(Min, select((a < b) | (a != a), a, b))
EDGE_TWO(Max, select((a > b) | (a != a), a, b))
EDGE_TWO(Equal, truth(a == b))
EDGE_TWO(Less, truth(a < b))
EDGE_TWO(LessEqual, truth(a <= b))
EDGE_TWO(Add, a + b)
EDGE_TWO(Sub, a - b)
EDGE_TWO(Mul, a* b)
EDGE_TWO(ReluGrad, select(b > Vec{}, a, Vec{}))
#undef EDGE_TWO

struct Pow {
  EDGE_INLINE Vec apply(Vec a, Vec b) {
    float x[EDGE_VECTOR_FLOATS], y[EDGE_VECTOR_FLOATS];
    store(x, a);
    store(y, b);
    for (Index i = 0; i < kLanes; ++i) x[i] = __builtin_powf(x[i], y[i]);
    return load(x);
  }
};

// a * b, rounded to float32 before anything is added to it: the compiler makes no fused
// multiply-add of it. So a step computes the same bits whether or not the engine joined it with
// another. GCC has no pragma for that, and takes a vector apart for its __builtin_assoc_barrier, so
// it is told that something may happen to the product while it lies in a register.
EDGE_INLINE Vec product(Vec a, Vec b) {
#if defined(__clang__)
#pragma clang fp contract(off)
  return a * b;
#elif defined(__AVX512F__) || defined(__SSE2__) || defined(__ARM_NEON)
  Vec c = a * b;
#if defined(__AVX512F__)
  asm("" : "+v"(c));
#elif defined(__SSE2__)
  asm("" : "+x"(c));
#else
  asm("" : "+w"(c));
#endif
  return c;
#elif __GNUC__ >= 12
  return __builtin_assoc_barrier(a * b);  // no vector registers, so nothing is taken apart
#else
  return a * b;  // older GCC may round once less
#endif
}

#define EDGE_THREE(name, expression)                                  \
  struct name {                                                       \
    EDGE_INLINE Vec apply(Vec a, Vec b, Vec c) { return expression; } \
  };
EDGE_THREE(Where, select(a == Vec{}, c, b))
EDGE_THREE(MultiplyAdd, product(a, b) + c)
EDGE_THREE(MultiplySub, product(a, b) - c)
EDGE_THREE(SubMultiply, c - product(a, b))
EDGE_THREE(MultiplyAddRelu, Relu::apply(product(a, b) + c))
EDGE_THREE(ClipGrad, ReluGrad::apply(a* Less::apply(b, c), b))
#undef EDGE_THREE

// Where an operand lies for a loop: `row` floats on for the next row.
struct LoopOperand {
  const float* at;
  Index row;
};
using Loop = void (*)(float* out, const LoopOperand* in, Index rows, Index columns);

template <class F>
void loop_one(float* out, const LoopOperand* in, Index, Index columns) {
  const float* x = in[0].at;
  for (Index i = 0; i < columns; i += kLanes) store(out + i, F::apply(load(x + i)));
}

// Bit k of Moving: operand k has a number for each place in a row; otherwise one serves all of it.
template <bool Moving>
EDGE_INLINE Vec element(const float* row, Index i, Vec all) {
  return Moving ? load(row + i) : all;
}

template <class F, int Moving>
void loop_two(float* out, const LoopOperand* in, Index rows, Index columns) {
  constexpr bool kA = (Moving & 1) != 0, kB = (Moving & 2) != 0;
  for (Index r = 0; r < rows; ++r) {
    const float *a = in[0].at + r * in[0].row, *b = in[1].at + r * in[1].row;
    const Vec all_a = splat(*a), all_b = splat(*b);
    float* y = out + r * columns;
    EDGE_UNROLL_4
    for (Index i = 0; i < columns; i += kLanes) {
      store(y + i, F::apply(element<kA>(a, i, all_a), element<kB>(b, i, all_b)));
    }
  }
}

template <class F, int Moving>
void loop_three(float* out, const LoopOperand* in, Index rows, Index columns) {
  constexpr bool kA = (Moving & 1) != 0, kB = (Moving & 2) != 0, kC = (Moving & 4) != 0;
  for (Index r = 0; r < rows; ++r) {
    const float *a = in[0].at + r * in[0].row, *b = in[1].at + r * in[1].row,
                *c = in[2].at + r * in[2].row;
    const Vec all_a = splat(*a), all_b = splat(*b), all_c = splat(*c);
    float* y = out + r * columns;
    EDGE_UNROLL_4
    for (Index i = 0; i < columns; i += kLanes) {
      store(y + i,
            F::apply(element<kA>(a, i, all_a), element<kB>(b, i, all_b), element<kC>(c, i, all_c)));
    }
  }
}

// In the order of UnaryFunction.
constexpr Loop kOnes[kUnaryFunctions] = {
    loop_one<Exp>,     loop_one<Log>,  loop_one<Sqrt>,     loop_one<Reciprocal>, loop_one<Tanh>,
    loop_one<Sigmoid>, loop_one<Erf>,  loop_one<Softplus>, loop_one<Abs>,        loop_one<Sign>,
    loop_one<Floor>,   loop_one<Ceil>, loop_one<Round>,    loop_one<Sin>,        loop_one<Cos>,
};

template <class F>
Loop two(int moving) {
  constexpr Loop kLoops[] = {loop_two<F, 0>, loop_two<F, 1>, loop_two<F, 2>, loop_two<F, 3>};
  return kLoops[moving];
}

template <class F>
Loop three(int moving) {
  constexpr Loop kLoops[] = {loop_three<F, 0>, loop_three<F, 1>, loop_three<F, 2>,
                             loop_three<F, 3>, loop_three<F, 4>, loop_three<F, 5>,
                             loop_three<F, 6>, loop_three<F, 7>};
  return kLoops[moving];
}

Loop simple_loop_of(MapFunction function, int moving) {
  switch (function) {
    case MapFunction::div:
      return two<Div>(moving);
    case MapFunction::pow:
      return two<Pow>(moving);
    case MapFunction::min:
      return two<Min>(moving);
    case MapFunction::max:
      return two<Max>(moving);
    case MapFunction::equal:
      return two<Equal>(moving);
    case MapFunction::less:
      return two<Less>(moving);
    case MapFunction::less_equal:
      return two<LessEqual>(moving);
    case MapFunction::add:
      return two<Add>(moving);
    case MapFunction::sub:
      return two<Sub>(moving);
    case MapFunction::mul:
      return two<Mul>(moving);
    case MapFunction::relu_grad:
      return two<ReluGrad>(moving);
    case MapFunction::where:
      return three<Where>(moving);
    case MapFunction::multiply_add:
      return three<MultiplyAdd>(moving);
    case MapFunction::multiply_sub:
      return three<MultiplySub>(moving);
    case MapFunction::sub_multiply:
      return three<SubMultiply>(moving);
    case MapFunction::multiply_add_relu:
      return three<MultiplyAddRelu>(moving);
    case MapFunction::clip_grad:
      return three<ClipGrad>(moving);
    case MapFunction::relu:
      return loop_one<Relu>;
    default:
      return kOnes[static_cast<std::int32_t>(function)];
  }
}

}  // namespace

}  // namespace EDGE_ISA
}  // namespace edge
