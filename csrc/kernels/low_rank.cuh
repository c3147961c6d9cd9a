// Truncated singular value decomposition A ~ U diag(s) V^T of a dense (m, n) float32 matrix, and
// PowerSGD's step, on a device.
//
// Randomised subspace iteration from the right (Halko, Martinsson and Tropp, 2011, algorithm 4.4)
// with p = rank + 8 columns or more, a multiple of 16, never more than min(m, n):
//   V random, or last round's;  repeat T = A V, Z = A^T T, V = orth(Z);  then T = A V,
//   T^T T = W S^2 W^T,  U = T W / S,  V = V W
// Iterations stop, without the host, when one lowers ||A||^2 - ||T||^2 by less than `tolerance` of
// it, or after `iterations`. orth is CholeskyQR twice, Gram matrices and triangular factors in
// float64; a column that depends on those before it becomes zero. U is made orthonormal once more,
// because T's columns of small singular values carry the rounding of the large. The eigenvectors
// are by Jacobi rotations, in one block.
//
//   u (m, rank), s (rank) descending, vt (rank, n); the entry of largest magnitude of each column
//   of u (the first of several) is positive. Where A has less than rank r the s are 0 and their
//   columns of u and v zero. error (1) = sqrt(1 - sum s^2 / ||A||^2). used (1): the smallest rank
//   with sum s^2 >= energy ||A||^2, or `rank`. first_bad (1): -1, or (2^32 - 1 for none) the least
//   place, up to 2^32 - 2, of what is not finite; then all of the rest is NaN or 0.
//
// A is scaled by a power of two as it is read, so neither 1e-30 nor 1e30 leaves the range. 1 <=
// rank <= kMostRank; p m n multiply-adds a product, 2 iterations + 1 of them. Products in float32
// by increasing k within a part, parts in order: the same bits in every run on one device.
// Workspace: layout() says; 4 p (m + n) + 4 p max(m, n) splits + 280 p^2 bytes and 32 a processor,
// splits <= 2 processors / tiles of the larger product + 1. Nothing is allocated and nothing waits.
#pragma once

#include "kernels/low_rank_small.cuh"

namespace edge::cuda::low_rank {

inline u64 width_of(u64 m, u64 n, u64 rank) {
  const u64 wanted = ceil_div(rank + 8, 16) * 16;
  const u64 most = m < n ? m : n;
  return wanted < most ? wanted : most;
}

struct Buffers {
  float* v;  // (n, p)
  float* t;  // (m, p)
};

inline u64 grid(u64 processors, u64 units) {
  const u64 most = processors * 4;
  return units < most ? units : most;
}

// Lays the workspace out; with a null one, says how many bytes it takes. m, n and width are set. A
// step of PowerSGD needs no buffers.
inline u64 layout(Matrix& it, u64 processors, void* workspace, Buffers* buffers) {
  const u64 columns = ceil_div(it.width, kTileSide);
  const u64 least = it.m < it.n ? it.m : it.n;
  const u64 most = it.m < it.n ? it.n : it.m;
  const u64 wanted = ceil_div(2 * processors, ceil_div(most, kTileSide) * columns);
  const u64 possible = ceil_div(least, 4 * kTileDepth);
  it.splits = wanted < possible ? wanted : possible;
  Carve parts(workspace);
  it.state = parts.take<State>(1);
  it.squares = parts.take<double>(processors * 4);
  it.grams = parts.take<double>(kGramParts * it.width * it.width);
  it.factor = parts.take<double>(it.width * it.width);
  it.transform = parts.take<double>(it.width * it.width);
  it.transform_v = parts.take<double>(it.width * it.width);
  if (buffers != nullptr) {
    buffers->v = parts.take<float>(it.n * it.width);
    buffers->t = parts.take<float>(it.m * it.width);
  }
  it.parts = parts.take<float>(it.splits * most * it.width);
  return parts.bytes();
}

template <bool kTransposed, class Launcher>
void multiply(Launcher& launcher, const Matrix& it, const float* x, float* out,
              bool unscaled = false) {
  const u64 rows = kTransposed ? it.n : it.m;
  const u64 tiles = ceil_div(rows, kTileSide) * ceil_div(it.width, kTileSide);
  launcher.template launch<Multiply<kTransposed>>(tiles * it.splits, {it, x});
  const u64 size = rows * it.width;
  launcher.template launch<AddParts>(grid(launcher.processors(), ceil_div(size, kThreads)),
                                     {it, out, size, unscaled});
}

template <class Launcher>
void gram(Launcher& launcher, const Matrix& it, const float* x, u64 rows, u64 width, bool always) {
  const u64 tiles = ceil_div(width, Gram::kSide);
  launcher.template launch<Gram>(kGramParts * tiles * tiles, {it, x, rows, width, always});
}

// x (rows, width) becomes orthonormal, in place.
template <class Launcher>
void orthonormal(Launcher& launcher, const Matrix& it, float* x, u64 rows, u64 width, bool always) {
  for (int pass = 0; pass < 2; ++pass) {
    gram(launcher, it, x, rows, width, always);
    launcher.template launch<Cholesky>(1, {it, width, always});
    launcher.template launch<Apply>(ceil_div(rows, kApplyRows), {it.state, x, it.transform, x, rows,
                                                                 width, width, false, always});
  }
}

template <class Launcher>
void measure(Launcher& launcher, const Matrix& it) {
  launcher.fill(it.state, 0, sizeof(State));
  launcher.fill(&it.state->not_peak, 0xFF, 2 * sizeof(u32));  // and first_bad
  const u64 blocks = grid(launcher.processors(), ceil_div(it.m * it.n, kThreads));
  launcher.template launch<Peak>(blocks, it);
  launcher.template launch<SquareSum>(blocks, it);
  launcher.template launch<Look>(1, {it, blocks, 0.0, true, false});
}

struct Settings {
  u64 rank;
  u64 seed;
  const float* warm;  // (warm_rank, n), or null
  u64 warm_rank;
  u64 iterations;
  double tolerance;
  double energy;
};

template <class Launcher>
void truncated_svd(Launcher& launcher, const float* a, u64 m, u64 n, const Settings& settings,
                   const Result& result, void* workspace) {
  Matrix it{};
  Buffers buffers{};
  it.a = a, it.m = m, it.n = n, it.width = width_of(m, n, settings.rank);
  layout(it, launcher.processors(), workspace, &buffers);
  const u64 p = it.width;
  const u64 rank = settings.rank;
  measure(launcher, it);
  const u64 prefix = hashed(hashed(mixed(kGolden), settings.seed), 0);
  const u64 warm_rank = settings.warm == nullptr ? 0
                        : settings.warm_rank < p ? settings.warm_rank
                                                 : p;
  launcher.template launch<Start>(grid(launcher.processors(), ceil_div(n * p, kThreads)),
                                  {buffers.v, n, p, prefix, settings.warm, warm_rank, 1, n});
  if (warm_rank > 0 || settings.iterations == 0) orthonormal(launcher, it, buffers.v, n, p, true);
  const u64 blocks = grid(launcher.processors(), ceil_div(m * p, kThreads));
  for (u64 iteration = 0; iteration < settings.iterations; ++iteration) {
    multiply<false>(launcher, it, buffers.v, buffers.t);
    // V is orthonormal from the first iteration on.
    if (iteration > 0)
      launcher.template launch<Look>(1, {it, blocks, settings.tolerance, false, iteration > 1});
    multiply<true>(launcher, it, buffers.t, buffers.v);
    orthonormal(launcher, it, buffers.v, n, p, false);
  }
  multiply<false>(launcher, it, buffers.v, buffers.t);
  gram(launcher, it, buffers.t, m, p, true);
  launcher.template launch<Eigen>(1, {it, result, rank, settings.energy});
  launcher.template launch<Apply>(ceil_div(m, kApplyRows), {it.state, buffers.t, it.transform,
                                                            result.u, m, p, rank, false, true});
  launcher.template launch<Apply>(
      ceil_div(n, kApplyRows), {it.state, buffers.v, it.factor, result.vt, n, p, rank, true, true});
  gram(launcher, it, result.u, m, rank, true);
  launcher.template launch<Cholesky>(1, {it, rank, true});
  launcher.template launch<Apply>(ceil_div(m, kApplyRows), {it.state, result.u, it.transform,
                                                            result.u, m, rank, rank, false, true});
  launcher.template launch<Signs>(rank, {result.u, result.vt, m, n, rank});
}

// One step of subspace iteration from last round's q (n, rank): p = orth(A q), then q = A^T p, so A
// ~ p q^T (Vogels et al., 2019). Only the span of q counts; columns of p that A q does not reach
// are zero, and so are then those of q. rank <= kMostWidth.
template <class Launcher>
void power_step(Launcher& launcher, const float* a, u64 m, u64 n, u64 rank, const float* q,
                float* p, float* next_q, std::int32_t* first_bad, void* workspace) {
  Matrix it{};
  it.a = a, it.m = m, it.n = n, it.width = rank;
  layout(it, launcher.processors(), workspace, nullptr);
  measure(launcher, it);
  multiply<false>(launcher, it, q, p);
  orthonormal(launcher, it, p, m, rank, true);
  multiply<true>(launcher, it, p, next_q, true);
  launcher.template launch<Report>(1, {it.state, first_bad});
}

}  // namespace edge::cuda::low_rank
