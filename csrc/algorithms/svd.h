// Truncated singular value decomposition A ~ U diag(s) V^T of a dense float32 matrix (m, n).
//
// Large: a randomised range finder from the right (Halko, Martinsson and Tropp, 2011,
// algorithm 4.4) with width p = rank + 8 or more, a multiple of 16. One iteration reads A once: of
// a block of rows that is in the cache, T = A_b V, then Z += A_b^T T; Z is then made orthonormal.
// After two iterations (one from a warm start) Y = A V and its Gram matrix give s and what is
// missing, ||A||^2 - sum s^2; iterations go on while the next is expected to lower the error by
// more than `tolerance` of it (what the last one gained, times (s_p / s_rank)^4). For an energy p
// begins at 16 and grows until the rank leaves eight columns to spare. Where min(m, n) <= 64 or < 2
// p: V from the eigenvectors of A^T A in float64 (of A A^T where m < n, by a transposed copy), then
// the same Y. Sums of squares are float64 everywhere; products of A are float32. A is read passes /
// 2 times or so; p m n multiply-adds a pass. Memory beside A and the result, in bytes: 8 p (m + n)
// + 28 p^2 + 256 p a thread + 4096, w^2 instead of p^2 in the small route with w = min(m, n); 4 m n
// more where a copy is transposed or scaled (max |a| outside 2^-40 .. 2^40).
#pragma once

#include "algorithms/orthogonal.h"

namespace edge {

struct SvdArgs {
  const float* a = nullptr;
  Index m = 0, n = 0;
  Index rank = 0;               // or the most where energy > 0; 1 <= rank <= min(m, n)
  double energy = 0;            // > 0: the smallest rank with sum s^2 >= energy ||A||^2
  const float* warm = nullptr;  // V^T of an earlier decomposition, (warm_rank, n), or null
  Index warm_rank = 0;
  std::uint64_t seed = 0;
  double tolerance = 0.02;
  Index iterations = 12;  // at most
};

// Columns in workspace memory, valid until the workspace is used again.
struct Svd {
  const float *u, *v;  // (m, u_step), (n, v_step); the first `rank` columns count
  const double* s;
  double scale;  // of s
  Index u_step, v_step, rank, passes;
  double error;  // sqrt(1 - sum s^2 / ||A||^2); 0 for a zero matrix
};

// Throws std::invalid_argument naming the first NaN or infinity.
Svd truncated_svd(Workspace& workspace, const SvdArgs& args);

struct PowerArgs {
  const float* a = nullptr;
  const float* q = nullptr;  // (n, rank)
  Index m = 0, n = 0, rank = 0;
  std::uint64_t seed = 0;  // of columns that are drawn
};

// p (m, step) orthonormal, q (n, step); the first `rank` columns count.
struct PowerFactors {
  const float *p, *q;
  Index step;
};

// One warm-started step of subspace iteration (PowerSGD: Vogels et al., 2019): P = orth(A Q), then
// Q = A^T P, so A ~ P Q^T. Columns of q that are zero or dependent are drawn anew; columns of P
// that A does not reach are zero. Throws std::invalid_argument as above.
PowerFactors power_step(Workspace& workspace, const PowerArgs& args);

}  // namespace edge
