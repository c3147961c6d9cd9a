#include "kernels/binary.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr Index kGrain = 16;  // shares begin at multiples of it: one cache line, one worker

struct Div {
  static float apply(float a, float b) { return a / b; }
};
struct Pow {
  static float apply(float a, float b) { return __builtin_powf(a, b); }
};
struct Min {
  static float apply(float a, float b) { return (a < b) | (a != a) ? a : b; }
};
struct Max {
  static float apply(float a, float b) { return (a > b) | (a != a) ? a : b; }
};
struct Equal {
  static float apply(float a, float b) { return a == b ? 1.0F : 0.0F; }
};
struct Less {
  static float apply(float a, float b) { return a < b ? 1.0F : 0.0F; }
};
struct LessEqual {
  static float apply(float a, float b) { return a <= b ? 1.0F : 0.0F; }
};

// One run along the last dimension; strides are 0 or anything, 1 is the fast case.
template <class Op>
void run_two(const float* const* in, const Index* steps, float* out, Index size) {
  const float *a = in[0], *b = in[1];
  const Index a_step = steps[0], b_step = steps[1];
  if (a_step == 1 && b_step == 1) {
    EDGE_INDEPENDENT
    for (Index i = 0; i < size; ++i) out[i] = Op::apply(a[i], b[i]);
  } else if (a_step == 1 && b_step == 0) {
    const float value = *b;
    EDGE_INDEPENDENT
    for (Index i = 0; i < size; ++i) out[i] = Op::apply(a[i], value);
  } else if (a_step == 0 && b_step == 1) {
    const float value = *a;
    EDGE_INDEPENDENT
    for (Index i = 0; i < size; ++i) out[i] = Op::apply(value, b[i]);
  } else {
    for (Index i = 0; i < size; ++i) out[i] = Op::apply(a[i * a_step], b[i * b_step]);
  }
}

void run_where(const float* const* in, const Index* steps, float* out, Index size) {
  const float *condition = in[0], *a = in[1], *b = in[2];
  if (steps[0] == 1 && steps[1] == 1 && steps[2] == 1) {
    EDGE_INDEPENDENT
    for (Index i = 0; i < size; ++i) {
      const float yes = a[i], no = b[i];  // both read: a conditional load would be a masked one
      out[i] = condition[i] != 0.0F ? yes : no;
    }
    return;
  }
  for (Index i = 0; i < size; ++i) {
    const float yes = a[i * steps[1]], no = b[i * steps[2]];
    out[i] = condition[i * steps[0]] != 0.0F ? yes : no;
  }
}

using Run = void (*)(const float* const*, const Index*, float*, Index);
// In the order of BinaryFunction.
constexpr Run kRuns[kBinaryFunctions] = {run_two<Div>,      run_two<Pow>,   run_two<Min>,
                                         run_two<Max>,      run_two<Equal>, run_two<Less>,
                                         run_two<LessEqual>};

void broadcast(const BroadcastArgs& args, Index operands, Run run, const Worker& worker) {
  const Index last = args.ndim - 1, row = args.dims[last];
  Index size = 1;
  for (Index d = 0; d < args.ndim; ++d) size *= args.dims[d];
  const Share grains = share_of(ceil_div(size, kGrain), worker);
  const Index end = smaller(size, grains.end * kGrain);
  Index at = grains.begin * kGrain;
  while (at < end) {
    const Index column = at % row, count = smaller(row - column, end - at);
    const float* in[3] = {};
    Index steps[3] = {};
    for (Index k = 0; k < operands; ++k) {
      steps[k] = args.strides[k][last];
      Index rest = at / row, offset = column * steps[k];
      for (Index d = last - 1; d >= 0; --d) {
        offset += rest % args.dims[d] * args.strides[k][d];
        rest /= args.dims[d];
      }
      in[k] = args.in[k] + offset;
    }
    run(in, steps, args.out + at, count);
    at += count;
  }
}

}  // namespace

void binary(const BroadcastArgs& args, const Worker& worker) {
  broadcast(args, 2, kRuns[static_cast<std::int32_t>(args.function)], worker);
}

void where(const BroadcastArgs& args, const Worker& worker) {
  broadcast(args, 3, run_where, worker);
}

}  // namespace EDGE_ISA
}  // namespace edge
