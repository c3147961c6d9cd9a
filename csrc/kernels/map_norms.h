// Joined steps of a map: what a normalisation with an activation and its gradient are made of, in
// one loop each. Every number in between is rounded as by the step alone, so joining changes no
// bit. Internal linkage, as everything in simd.h.
//
// An expression is made for one row of a tile by of(operands, row) and gives the vector from place
// i on by at(i). kOperands are its own; those of what it is made of come first.
#pragma once

#include "kernels/map_loops.h"

namespace edge {
namespace EDGE_ISA {

namespace {

EDGE_INLINE const float* row_of(const LoopOperand& operand, Index row) {
  return operand.at + row * operand.row;
}
EDGE_INLINE Vec number_of(const LoopOperand& operand, Index row) {
  return splat(*row_of(operand, row));
}

struct Element {
  const float* x;
  static constexpr int kOperands = 1;
  EDGE_INLINE Element of(const LoopOperand* in, Index row) { return {row_of(in[0], row)}; }
  EDGE_INLINE_MEMBER Vec at(Index i) const { return load(x + i); }
};

struct AffineRelu {
  const float* x;
  Vec a, b;
  static constexpr int kOperands = 3;
  EDGE_INLINE AffineRelu of(const LoopOperand* in, Index row) {
    return {row_of(in[0], row), number_of(in[1], row), number_of(in[2], row)};
  }
  EDGE_INLINE_MEMBER Vec at(Index i) const { return MultiplyAddRelu::apply(load(x + i), a, b); }
};

struct AffineClip {
  AffineRelu z;
  Vec limit;
  static constexpr int kOperands = 4;
  EDGE_INLINE AffineClip of(const LoopOperand* in, Index row) {
    return {AffineRelu::of(in, row), number_of(in[3], row)};
  }
  EDGE_INLINE_MEMBER Vec at(Index i) const { return Min::apply(z.at(i), limit); }
};

struct AffineReluGrad {
  const float* d;
  AffineRelu z;
  static constexpr int kOperands = 4;
  EDGE_INLINE AffineReluGrad of(const LoopOperand* in, Index row) {
    return {row_of(in[0], row), AffineRelu::of(in + 1, row)};
  }
  EDGE_INLINE_MEMBER Vec through(Vec y, Index i) const { return ReluGrad::apply(load(d + i), y); }
  EDGE_INLINE_MEMBER Vec at(Index i) const { return through(z.at(i), i); }
  EDGE_INLINE_MEMBER Vec activation(Vec y) const { return y; }
};

struct AffineClipGrad {
  const float* d;
  AffineRelu z;
  Vec limit;
  static constexpr int kOperands = 5;
  EDGE_INLINE AffineClipGrad of(const LoopOperand* in, Index row) {
    return {row_of(in[0], row), AffineRelu::of(in + 1, row), number_of(in[4], row)};
  }
  EDGE_INLINE_MEMBER Vec through(Vec y, Index i) const {
    return ClipGrad::apply(load(d + i), y, limit);
  }
  EDGE_INLINE_MEMBER Vec at(Index i) const { return through(z.at(i), i); }
  EDGE_INLINE_MEMBER Vec activation(Vec y) const { return Min::apply(y, limit); }
};

template <class D>
struct WeightedSum {
  D d;
  const float* x;
  Vec s, t, u;
  static constexpr int kOperands = D::kOperands + 4;
  EDGE_INLINE WeightedSum of(const LoopOperand* in, Index row) {
    const LoopOperand* rest = in + D::kOperands;
    return {D::of(in, row), row_of(rest[1], row), number_of(rest[0], row), number_of(rest[2], row),
            number_of(rest[3], row)};
  }
  EDGE_INLINE_MEMBER Vec sum(Vec slope, Index i) const {
    return (product(slope, s) + product(load(x + i), t)) + u;
  }
  EDGE_INLINE_MEMBER Vec at(Index i) const { return sum(d.at(i), i); }
};

// Two results of one visit.
struct Both {
  Vec first, second;
};

// The gradient, and the activation it goes through.
template <class D>
struct SlopeAndActivation {
  WeightedSum<D> slope;
  EDGE_INLINE SlopeAndActivation of(const LoopOperand* in, Index row) {
    return {WeightedSum<D>::of(in, row)};
  }
  EDGE_INLINE_MEMBER Both at(Index i) const {
    const Vec y = slope.d.z.at(i);
    return {slope.sum(slope.d.through(y, i), i), slope.d.activation(y)};
  }
};

// x - m, and the activation of an affine function of that. CLIP: there is a limit.
template <bool CLIP>
struct CentredAndActivation {
  const float* x;
  Vec m, a, b, limit;
  EDGE_INLINE CentredAndActivation of(const LoopOperand* in, Index row) {
    return {row_of(in[0], row), number_of(in[1], row), number_of(in[2], row), number_of(in[3], row),
            CLIP ? number_of(in[4], row) : Vec{}};
  }
  EDGE_INLINE_MEMBER Both at(Index i) const {
    const Vec centred = load(x + i) - m;
    const Vec y = MultiplyAddRelu::apply(centred, a, b);
    return {centred, CLIP ? Min::apply(y, limit) : y};
  }
};

template <class F>
void loop_joined(float* out, const LoopOperand* in, Index rows, Index columns) {
  for (Index r = 0; r < rows; ++r) {
    const F f = F::of(in, r);
    float* y = out + r * columns;
    EDGE_UNROLL_4
    for (Index i = 0; i < columns; i += kLanes) store(y + i, f.at(i));
  }
}

using PairLoop = void (*)(float* out, float* second, const LoopOperand* in, Index rows,
                          Index columns);

template <class F>
void loop_pair(float* out, float* second, const LoopOperand* in, Index rows, Index columns) {
  for (Index r = 0; r < rows; ++r) {
    const F f = F::of(in, r);
    float *y = out + r * columns, *z = second + r * columns;
    EDGE_UNROLL_4
    for (Index i = 0; i < columns; i += kLanes) {
      const Both both = f.at(i);
      store(y + i, both.first);
      store(z + i, both.second);
    }
  }
}

PairLoop pair_loop_of(MapFunction function) {
  switch (function) {
    case MapFunction::centred_relu:
      return loop_pair<CentredAndActivation<false>>;
    case MapFunction::centred_clip:
      return loop_pair<CentredAndActivation<true>>;
    case MapFunction::weighted_relu_grad:
      return loop_pair<SlopeAndActivation<AffineReluGrad>>;
    default:
      return loop_pair<SlopeAndActivation<AffineClipGrad>>;
  }
}

Loop loop_of(MapFunction function, int moving) {
  switch (function) {
    case MapFunction::affine_clip:
      return loop_joined<AffineClip>;
    case MapFunction::affine_relu_grad:
      return loop_joined<AffineReluGrad>;
    case MapFunction::affine_clip_grad:
      return loop_joined<AffineClipGrad>;
    case MapFunction::weighted_sum:
      return loop_joined<WeightedSum<Element>>;
    case MapFunction::weighted_relu_grad:
      return loop_joined<WeightedSum<AffineReluGrad>>;
    case MapFunction::weighted_clip_grad:
      return loop_joined<WeightedSum<AffineClipGrad>>;
    default:
      return simple_loop_of(function, moving);
  }
}

// What sums take.

struct Product {
  const float *x, *y;
  static constexpr int kOperands = 2;
  EDGE_INLINE Product of(const LoopOperand* in, Index row) {
    return {row_of(in[0], row), row_of(in[1], row)};
  }
  EDGE_INLINE_MEMBER Vec at(Index i) const { return product(load(x + i), load(y + i)); }
};

struct SquareDifference {
  const float* x;
  Vec a;
  static constexpr int kOperands = 2;
  EDGE_INLINE SquareDifference of(const LoopOperand* in, Index row) {
    return {row_of(in[0], row), number_of(in[1], row)};
  }
  EDGE_INLINE_MEMBER Vec at(Index i) const {
    const Vec difference = load(x + i) - a;
    return product(difference, difference);
  }
};

template <class S>
struct Weighted {
  S s;
  Vec weight;
  static constexpr int kOperands = S::kOperands + 1;
  EDGE_INLINE Weighted of(const LoopOperand* in, Index row) {
    return {S::of(in, row), number_of(in[S::kOperands], row)};
  }
  EDGE_INLINE_MEMBER Vec at(Index i) const { return product(s.at(i), weight); }
};

}  // namespace

}  // namespace EDGE_ISA
}  // namespace edge
