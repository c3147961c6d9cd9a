// Bases of narrow matrices: orthonormal columns by repeated Cholesky QR with float64 sums.
#pragma once

#include "core/workspace.h"
#include "kernels/gram.h"

namespace edge {

// (rows, width) float32, dense; width a multiple of kNarrowLanes.
struct Basis {
  float* data = nullptr;
  Index rows = 0, width = 0;
};

// What the products of two bases of `width` columns and their factorisations need, one piece of a
// workspace each.
struct SmallRoom {
  // width^2, width^2, width, width, eigen_work(width)
  double *g, *vectors, *values, *before, *work;
  float* x;         // width^2
  double* scratch;  // gram_scratch(width) a thread
};

Index small_room_doubles(Index width);
// Blocks of the workspace that small_room takes.
constexpr std::size_t kRoomDoubles = 0, kRoomFloats = 1;

// From a block of small_room_doubles(width) and one of width^2 floats and of gram_scratch a thread.
SmallRoom small_room(Workspace& workspace, Index width);

// g = y^T y (upper triangle).
void gram(Workspace& workspace, const Basis& y, const SmallRoom& room);

// to = y x, x (y.width, to.width): `to.data` another array than y.data.
void multiply(Workspace& workspace, const Basis& y, const float* x, const Basis& to);

// Columns of `y` become orthonormal, max |Y^T Y - I| <= kOrthogonal, those dependent on earlier
// ones zero; R in Y = Q R is upper triangular, so the span of the first columns stays. Uses `spare`
// of the same size, and swaps the two where that saves a copy. Cholesky QR as often as it takes
// (twice where y is well conditioned; Fukaya et al., 2014); throws std::runtime_error after
// kRounds, which only a NaN can take.
void orthonormalise(Workspace& workspace, Basis& y, Basis& spare, const SmallRoom& room);

// Zero columns among the first `count` <= rows become unit vectors orthogonal to all the others.
void complete(const Basis& y, Index count);

constexpr double kOrthogonal = 1e-6;
constexpr int kRounds = 8;

}  // namespace edge
