// One-dimensional Winograd transforms of lines of vectors. Internal linkage.
//
// Toom-Cook with the points 0, +-5/8, +-3/2 and infinity: their squares are exact in float32, and
// the error of F(4x4, 3x3) is twice that of the direct sum, less than half of what the usual 0,
// +-1,
// +-2 make of it (points as in Barabasz et al., Error analysis and improving the accuracy of
// Winograd convolution, 2020; this pair by search over symmetric ones).
#pragma once

#include "kernels/simd.h"
#include "kernels/winograd_plan.h"

namespace edge {
namespace EDGE_ISA {

constexpr float kA = 0.625F, kB = 1.5F;
constexpr float kA2 = kA * kA, kB2 = kB * kB;

// Values of the source at one tile to the points: rows of B^T.
struct SourceLine {
  static constexpr int in = 6, out = 6;
  EDGE_INLINE void apply(const Vec* d, Vec* v) {
    const Vec sum = splat(kA2 + kB2), product = splat(kA2 * kB2), a2 = splat(kA2), b2 = splat(kB2);
    const Vec a = splat(kA), b = splat(kB);
    const Vec even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1];
    const Vec even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
    v[0] = d[4] - sum * d[2] + product * d[0];
    v[1] = even_a + a * odd_a;
    v[2] = even_a - a * odd_a;
    v[3] = even_b + b * odd_b;
    v[4] = even_b - b * odd_b;
    v[5] = d[5] - sum * d[3] + product * d[1];
  }
};

// TAPS values of a filter to the points: rows of G.
template <int TAPS>
struct FilterLine {
  static constexpr int in = TAPS, out = 6;
  // The polynomial's even and odd part at x, over what the Lagrange basis divides by.
  EDGE_INLINE void at(const Vec* g, float x2, float x, float norm, Vec& plus, Vec& minus) {
    Vec even = g[0] * splat(1.0F / norm), odd{};
    if (TAPS > 1) odd = g[1] * splat(x / norm);
    if (TAPS > 2) even += g[2] * splat(x2 / norm);
    if (TAPS > 3) odd += g[3] * splat(x2 * x / norm);
    if (TAPS > 4) even += g[4] * splat(x2 * x2 / norm);
    plus = even + odd;
    minus = even - odd;
  }
  EDGE_INLINE void apply(const Vec* g, Vec* u) {
    u[0] = g[0] * splat(1.0F / (kA2 * kB2));
    at(g, kA2, kA, 2.0F * kA2 * (kA2 - kB2), u[1], u[2]);
    at(g, kB2, kB, 2.0F * kB2 * (kB2 - kA2), u[3], u[4]);
    u[5] = g[TAPS - 1];
  }
};

// Products at the points to OUTPUTS sums: rows of A^T.
template <int OUTPUTS>
struct TargetLine {
  static constexpr int in = 6, out = OUTPUTS;
  EDGE_INLINE void apply(const Vec* m, Vec* y) {
    const Vec sum_a = m[1] + m[2], odd_a = m[1] - m[2], sum_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    if (OUTPUTS > 1) y[1] = splat(kA) * odd_a + splat(kB) * odd_b;
    if (OUTPUTS > 2) y[2] = splat(kA2) * sum_a + splat(kB2) * sum_b;
    if (OUTPUTS > 3) y[3] = splat(kA2 * kA) * odd_a + splat(kB2 * kB) * odd_b;
    if (OUTPUTS > 4) y[4] = splat(kA2 * kA2) * sum_a + splat(kB2 * kB2) * sum_b;
    y[OUTPUTS - 1] += m[5];
  }
};

// An axis of one tap.
struct SameLine {
  static constexpr int in = 1, out = 1;
  EDGE_INLINE void apply(const Vec* from, Vec* to) { to[0] = from[0]; }
};

// Floats from one value of a line to the next, and from one line to the next.
struct Steps {
  Index value, line;
};

template <class Line>
static void transform(const float* from, Steps read, float* to, Steps write, Index lines) {
  for (Index l = 0; l < lines; ++l) {
    Vec in[Line::in], out[Line::out];
    EDGE_UNROLL
    for (int i = 0; i < Line::in; ++i) in[i] = load(from + l * read.line + i * read.value);
    Line::apply(in, out);
    EDGE_UNROLL
    for (int i = 0; i < Line::out; ++i) store(to + l * write.line + i * write.value, out[i]);
  }
}

// The transforms by number: values of the source at an axis with `points` points, ...
__attribute__((unused)) static void source_lines(Index points, const float* from, Steps read,
                                                 float* to, Steps write, Index lines) {
  if (points == 1) return transform<SameLine>(from, read, to, write, lines);
  transform<SourceLine>(from, read, to, write, lines);
}
// ... `taps` values of a filter, ...
__attribute__((unused)) static void filter_lines(Index taps, const float* from, Steps read,
                                                 float* to, Steps write, Index lines) {
  switch (taps) {
    case 2:
      return transform<FilterLine<2>>(from, read, to, write, lines);
    case 3:
      return transform<FilterLine<3>>(from, read, to, write, lines);
    case 4:
      return transform<FilterLine<4>>(from, read, to, write, lines);
    case 5:
      return transform<FilterLine<5>>(from, read, to, write, lines);
    default:
      return transform<SameLine>(from, read, to, write, lines);
  }
}
// ... and to `outputs` sums.
__attribute__((unused)) static void target_lines(Index outputs, const float* from, Steps read,
                                                 float* to, Steps write, Index lines) {
  switch (outputs) {
    case 2:
      return transform<TargetLine<2>>(from, read, to, write, lines);
    case 3:
      return transform<TargetLine<3>>(from, read, to, write, lines);
    case 4:
      return transform<TargetLine<4>>(from, read, to, write, lines);
    case 5:
      return transform<TargetLine<5>>(from, read, to, write, lines);
    default:
      return transform<SameLine>(from, read, to, write, lines);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
