// Compiled without fused multiply-adds (CMakeLists.txt), so that every instruction set rounds
// alike.
#include "kernels/fold.h"

#include "kernels/declare.h"
#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

// 1.5 * 2^52 units: what is added to it is rounded to whole units, half to even, and its bits count
// them. Good for fewer than 2^51 units.
constexpr double kHugeShift = 0x1.8p79, kCoarseShift = 0x1.8p34, kFineShift = 0x1.8p-12;
static_assert(kHugeBits == 79 - 52 && kCoarseBits == 34 - 52 && kFineBits == -12 - 52, "");

EDGE_INLINE std::int64_t bits_of(double x) {
  std::int64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Takes whole units out of `rest` and returns how many.
EDGE_INLINE std::int64_t take(double& rest, double shift) {
  const double shifted = rest + shift;
  rest -= shifted -
          shift;  // exact: both are multiples of rest's last bit, and their difference is short
  return bits_of(shifted) - bits_of(shift);
}

EDGE_INLINE void add_term(const FoldArgs& args, Index from, Index place, bool huge) {
  const Index to = place + args.shift;
  double rest = static_cast<double>(args.x[from]) * args.weight;
  if (huge) args.huge[to] += take(rest, kHugeShift);
  args.coarse[to] += take(rest, kCoarseShift);
  args.fine[to] += take(rest, kFineShift);
}

}  // namespace

void fold(const FoldArgs& args, const Worker&) {
  if (args.places == nullptr && args.huge == nullptr) {
    EDGE_INDEPENDENT for (Index i = 0; i < args.n; ++i) add_term(args, i, i, false);
  } else if (args.places == nullptr) {
    EDGE_INDEPENDENT for (Index i = 0; i < args.n; ++i) add_term(args, i, i, true);
  } else {
    for (Index i = 0; i < args.n; ++i) add_term(args, i, args.places[i], args.huge != nullptr);
  }
}

void peak(const PeakArgs& args, const Worker&) {
  std::uint32_t most = *args.peak;
  for (Index i = 0; i < args.n; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, args.x + i, sizeof bits);
    bits &= 0x7FFFFFFFU;
    most = bits > most ? bits : most;
  }
  *args.peak = most;
}

}  // namespace EDGE_ISA
}  // namespace edge
