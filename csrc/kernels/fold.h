// Terms of weighted sums that come out the same in whatever order they are added.
//
// fold: p = weight * x[i], rounded once, is taken apart into whole numbers of three units, which
// are added to sums of int64: integers add up alike in any order, where floating-point sums do not.
//   huge    units of 2^27, only where `huge` is not null; else |p| < 2^27 is the caller's promise
//   coarse  units of 2^-18
//   fine    units of 2^-64, rounded half to even: |p - what is added| <= 2^-65
// With |p| < 2^27 (2^72 with huge) a term is less than 2^45 + 1 of any unit, so 2^17 terms fit.
// Dense where `places` is null: x[i] belongs to sum shift + i; else to sum shift + places[i],
// places ascending. peak: the largest of the bits of |x|; from 0x7F800000 on there is a value that
// is not finite.
//
// Nothing is fused: the same bits on every instruction set. Not shared among workers: callers give
// each its own range. Bytes moved: fold 4n + 32n (48n with huge); peak 4n.
#pragma once

#include "kernels/worker.h"

namespace edge {

constexpr int kHugeBits = 27, kCoarseBits = -18, kFineBits = -64;

struct FoldArgs {
  const float* x = nullptr;
  const std::int32_t* places = nullptr;
  Index n = 0, shift = 0;
  double weight = 0;
  std::int64_t* huge = nullptr;
  std::int64_t* coarse = nullptr;
  std::int64_t* fine = nullptr;
};

struct PeakArgs {
  const float* x = nullptr;
  Index n = 0;
  std::uint32_t* peak = nullptr;  // raised, never lowered
};

}  // namespace edge
