// The passes that selection by magnitude is made of; csrc/algorithms/select.h puts them together.
//
// An element's *key* is its bits without the sign, as an unsigned number: for finite floats it
// grows with |x|, zeros of both signs have key 0, infinity comes next and every NaN above it.
// float16 and bfloat16 take the upper half of a float's 32 bits (the lower are 0), which keeps
// their order too, so everything after loading sees one kind of bits.
//
//   select_sample:    keys of `count` elements at positions floor(n frac(p)), p from `start` in
//                     steps of the golden ratio: even over the range for every prefix, and no row
//                     length is a multiple of the step.
//   select_filter:    index and bits of the elements with key > threshold, and of the first `ties`
//                     with key == threshold, in order. Stops emitting (overflow) before `capacity`.
//   select_below:     bits of the elements with key < threshold, in order; overflow as above.
//   select_count:     how many keys are at or above a threshold.
//   select_histogram: how often every digit occurs, of keys whose upper bits are a prefix.
//
// The sources `residual` and `dgc` add the gradient as they read, so accumulation and selection
// share a pass. Float arithmetic is never fused here: results are the same bits on every
// instruction set.
//
//   residual: v += g
//   dgc:      u = m u + g; v += u                 Lin et al., 2018, arXiv 1712.01887, section 3.1
//   nesterov: u = m (u + g); v += u + g           as in the authors' code
//
// No alignment is needed beyond the elements' own. Bytes moved: every operand once.
#pragma once

#include "kernels/worker.h"

namespace edge {

constexpr std::uint32_t kKeyMask = 0x7FFFFFFFU;  // all but the sign

enum class SelectKind : std::int32_t {
  float32,
  bits16,    // float16 or bfloat16
  residual,  // x + residual, stored there
  dgc,       // x and momentum, into both
  nesterov,
  picked,  // bits of an earlier filter, with their indices
};

// A run of elements; `index` is that of the first one (or the table, where they were picked).
struct SelectRun {
  SelectKind kind = SelectKind::float32;
  const void* x = nullptr;
  float* residual = nullptr;
  float* momentum = nullptr;
  const std::uint32_t* picked = nullptr;
  Index count = 0;
  std::uint32_t index = 0;
  float factor = 0.0F;  // m
};

struct SelectSampleArgs {
  SelectRun run;
  std::uint32_t start = 0;  // of the sequence, in 2^-32
  Index count = 0;          // of the sample
  std::uint32_t* keys = nullptr;
};

constexpr Index kAllTies = Index{1} << 62;

// What a filter has emitted so far: goes on from run to run.
struct SelectOut {
  std::uint32_t* index = nullptr;
  std::uint32_t* bits = nullptr;
  Index count = 0, capacity = 0;
  Index ties = 0;              // still to be taken at the threshold, or from kAllTies on: no limit
  std::uint32_t greatest = 0;  // key that was seen
  bool overflow = false;
};

// About how much passes, which decides how it is emitted: at most one in 128, one in 24, or more.
enum class SelectShare : std::int32_t { rare, small, large };

struct SelectFilterArgs {
  SelectRun run;
  std::uint32_t threshold = 0;
  SelectShare share = SelectShare::rare;
  SelectOut* out = nullptr;
};

struct SelectBelowArgs {
  const std::uint32_t* x = nullptr;
  Index count = 0;
  std::uint32_t threshold = 0;
  SelectOut* out = nullptr;  // its index stays as it is
};

struct SelectCountArgs {
  SelectRun run;  // float32 or bits16
  std::uint32_t threshold = 0;
  Index* count = nullptr;
};

// Four tables in turn: equal neighbours would wait for each other's store in one.
constexpr Index kSelectTables = 4;

struct SelectHistogramArgs {
  SelectRun run;  // float32 or bits16
  std::uint32_t prefix = 0;
  std::int32_t prefix_shift = 31;   // key >> prefix_shift == prefix; 31: every key
  std::int32_t shift = 0;           // digit = key >> shift & (digits - 1)
  Index digits = 0;                 // a power of two
  std::uint32_t* counts = nullptr;  // (kSelectTables, digits), added to
};

}  // namespace edge
