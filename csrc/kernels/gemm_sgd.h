// A gradient that is a matrix product, and the step of stochastic gradient descent by it: gemm into
// scratch, a block of rows at a time, and sgd on the same rows of the parameter. The gradient as a
// whole exists nowhere. The bits are those of gemm and sgd one after the other.
//
// The operands are theirs; gemm.c and sgd.grad are null. param (M, N) and velocity overlap neither
// a nor b. Bytes moved: a and b as in gemm, param and velocity twice.
#pragma once

#include "kernels/gemm.h"
#include "kernels/sgd.h"

namespace edge {

struct GemmSgdArgs {
  GemmArgs gemm;
  SgdArgs sgd;
};

// A block of rows: 192 KiB, so that it is still in the second-level cache when the update reads it,
// but neither more rows than share one packed tile of B nor fewer than a tile of c has.
constexpr Index kGemmSgdBlock = 48 * 1024;  // floats

constexpr Index gemm_sgd_rows(Index m, Index n) {
  const Index wanted = kGemmSgdBlock / n;
  const Index rows = wanted < kMaxTileRows ? kMaxTileRows : wanted > kGemmRows ? kGemmRows : wanted;
  return m < rows ? m : rows;
}

constexpr Index gemm_sgd_scratch_floats(Index m, Index n, Index k) {
  return gemm_scratch_floats(k) + gemm_sgd_rows(m, n) * n;
}

}  // namespace edge
