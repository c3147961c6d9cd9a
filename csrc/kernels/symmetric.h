// Factorisations of a small symmetric positive semi-definite matrix in float64, on one worker.
//
// cholesky: g (n, n), of which the upper triangle is read and destroyed: G = R^T R.
// x (n, n) float32: R^-1, upper triangular, zeros below, so that Y X has orthonormal columns where
// G = Y^T Y. A column that is dependent on those before it (what is left of its square is below
// kDependent of it, the rounding of G) has column and row zero in X: Y X then has a zero there. n^3
// / 3 multiply-adds. work: n * n float64.
//
// eigen: g (n, n), of which the upper triangle is read, all destroyed. values: descending.
// vectors (wanted, n): the first `wanted` eigenvectors, one a row; null where wanted is 0.
// Householder's reduction to a tridiagonal matrix and implicit QL (Golub and Van Loan, Matrix
// Computations, 4th ed., 8.3), errors within n 2^-52 max |value|. work: eigen_work(n) float64.
// `converged` becomes false where 40 n iterations do not do, which takes a NaN.
#pragma once

#include "kernels/worker.h"

namespace edge {

struct CholeskyArgs {
  double* g = nullptr;
  double* work = nullptr;
  float* x = nullptr;
  Index n = 0;
};

struct EigenArgs {
  double* g = nullptr;
  double* values = nullptr;
  double* vectors = nullptr;
  double* work = nullptr;
  bool* converged = nullptr;
  Index n = 0, wanted = 0;
};

constexpr double kDependent = 1e-14;

// Rotated vectors, then three columns.
constexpr Index eigen_work(Index n) { return n * n + 3 * n; }

}  // namespace edge
