// Compiled without fused multiply-adds (CMakeLists.txt): an instruction set that has them would
// round differently from one that has not, and the numbers have to be the same everywhere.
#include "kernels/random.h"

#include "kernels/hash.h"
#include "kernels/vmath.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr float kUnit = 1.0F / 16777216.0F;  // 2^-24: float32 holds every multiple of it up to 1

std::uint64_t bits64_of(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The hash of everything but the element.
std::uint64_t prefix_of(const RandomArgs& args) {
  const std::uint64_t seed = mixed(bits64_of(*args.seed) + kGolden);
  return hashed(hashed(seed, args.stream), bits64_of(*args.step));
}

std::uint64_t hash_of(std::uint64_t prefix, Index i) {
  return hashed(prefix, static_cast<std::uint64_t>(i));
}

// cos(2 pi k 2^-24 - pi / 4): a quarter of the circle by the upper two of 24 bits, and an angle r
// in
// [-pi / 4, pi / 4) by the others. Taylor's series there: sine to 2e-9, cosine to 3e-8.
Vec cosine_of(IntVec k) {
  const IntVec quarter = k >> 22;
  const Vec r =
      (__builtin_convertvector(k & 0x3FFFFF, Vec) * (1.0F / 4194304.0F) - 0.5F) * 1.57079633F;
  const Vec square = r * r;
  Vec s = splat(2.75573192e-06F);
  s = s * square - 1.98412698e-04F;
  s = s * square + 8.33333333e-03F;
  s = s * square - 1.66666667e-01F;
  const Vec sine = r + r * square * s;
  Vec c = splat(2.48015873e-05F);
  c = c * square - 1.38888889e-03F;
  c = c * square + 4.16666667e-02F;
  c = c * square - 0.5F;
  const Vec cosine = 1.0F + square * c;
  const Vec size = select((quarter & 1) != 0, sine, cosine);
  const IntVec negative = (quarter == 1) | (quarter == 2);
  return select(negative, -size, size);
}

void uniform(const RandomArgs& args, Index begin, Index end) {
  const std::uint64_t prefix = prefix_of(args);
  for (Index i = begin; i < end; ++i)
    args.y[i] = static_cast<float>(static_cast<std::int32_t>(hash_of(prefix, i) >> 40)) * kUnit;
}

void normal(const RandomArgs& args, Index begin, Index end) {
  const std::uint64_t prefix = prefix_of(args);
  for (Index i = begin; i < end; i += kLanes) {
    float radius[EDGE_VECTOR_FLOATS];
    IntVec angle = {};
    for (Index j = 0; j < kLanes; ++j) {
      const std::uint64_t h = hash_of(prefix, i + j);
      radius[j] = static_cast<float>(static_cast<std::int32_t>(h >> 40) + 1) * kUnit;
      angle[j] = static_cast<std::int32_t>(h >> 16 & 0xFFFFFF);
    }
    store(radius, log_of(load(radius)) * -2.0F);
    for (Index j = 0; j < kLanes; ++j) radius[j] = __builtin_sqrtf(radius[j]);
    float lanes[EDGE_VECTOR_FLOATS];
    store(lanes, load(radius) * cosine_of(angle));
    for (Index j = 0; j < smaller(kLanes, end - i); ++j) args.y[i + j] = lanes[j];
  }
}

}  // namespace

void random(const RandomArgs& args, const Worker& worker) {
  const Share grains = share_of(ceil_div(args.size, 16), worker);
  const Index begin = smaller(args.size, grains.begin * 16),
              end = smaller(args.size, grains.end * 16);
  args.distribution == Distribution::uniform ? uniform(args, begin, end) : normal(args, begin, end);
}

}  // namespace EDGE_ISA
}  // namespace edge
