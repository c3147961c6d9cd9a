// Random numbers without state: each is a hash of a seed, the number of the stream, the step and
// the place of the element, so the same bits come out on every machine, for any number of workers
// and however often they are computed again.
//
//   h = hash64(bits of seed, stream, bits of step, i)     (rng.py: rounds of SplitMix64's
//   finaliser) uniform: (h >> 40) 2^-24, in [0, 1) normal:  sqrt(-2 ln u) cos(2 pi v - pi / 4), u =
//   ((h >> 40) + 1) 2^-24, v the next 24 bits
//            times 2^-24 (Box and Muller, 1958); at most 5.8
//
// Bytes moved: y once.
#pragma once

#include "kernels/worker.h"

namespace edge {

enum class Distribution : std::int32_t { uniform, normal };
constexpr std::int32_t kDistributions = 2;

struct RandomArgs {
  const float* seed = nullptr;
  const float* step = nullptr;
  float* y = nullptr;
  Index size = 0;
  std::uint64_t stream = 0;
  Distribution distribution = Distribution::uniform;
};

}  // namespace edge
