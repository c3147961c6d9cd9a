#include "kernels/elementwise.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

// Shares begin at multiples of this, so that two workers do not write one cache line.
constexpr Index kGrain = 16;

Share elements_of(Index size, const Worker& worker) {
  const Share grains = share_of(ceil_div(size, kGrain), worker);
  return {smaller(size, grains.begin * kGrain), smaller(size, grains.end * kGrain)};
}

struct Add {
  static float apply(float a, float b) { return a + b; }
};
struct Sub {
  static float apply(float a, float b) { return a - b; }
};
struct Mul {
  static float apply(float a, float b) { return a * b; }
};

// One run along the last dimension; strides are 0 or anything, 1 is the fast case.
template <class Op>
void run(const float* a, Index a_step, const float* b, Index b_step, float* c, Index size) {
  if (a_step == 1 && b_step == 1) {
    EDGE_INDEPENDENT
    for (Index i = 0; i < size; ++i) c[i] = Op::apply(a[i], b[i]);
  } else if (a_step == 1 && b_step == 0) {
    const float value = *b;
    EDGE_INDEPENDENT
    for (Index i = 0; i < size; ++i) c[i] = Op::apply(a[i], value);
  } else if (a_step == 0 && b_step == 1) {
    const float value = *a;
    EDGE_INDEPENDENT
    for (Index i = 0; i < size; ++i) c[i] = Op::apply(value, b[i]);
  } else {
    for (Index i = 0; i < size; ++i) c[i] = Op::apply(a[i * a_step], b[i * b_step]);
  }
}

template <class Op>
void broadcast(const BinaryArgs& args, const Worker& worker) {
  const Index last = args.ndim - 1, row = args.dims[last];
  Index size = 1;
  for (Index d = 0; d < args.ndim; ++d) size *= args.dims[d];
  const Share share = elements_of(size, worker);
  Index at = share.begin;
  while (at < share.end) {
    Index rest = at / row, a_offset = 0, b_offset = 0;
    for (Index d = last - 1; d >= 0; --d) {
      const Index i = rest % args.dims[d];
      rest /= args.dims[d];
      a_offset += i * args.a_strides[d];
      b_offset += i * args.b_strides[d];
    }
    const Index column = at % row, count = smaller(row - column, share.end - at);
    run<Op>(args.a + a_offset + column * args.a_strides[last], args.a_strides[last],
            args.b + b_offset + column * args.b_strides[last], args.b_strides[last], args.c + at,
            count);
    at += count;
  }
}

}  // namespace

void relu(const UnaryArgs& args, const Worker& worker) {
  const Share share = elements_of(args.size, worker);
  EDGE_INDEPENDENT
  for (Index i = share.begin; i < share.end; ++i) args.out[i] = args.x[i] < 0.0F ? 0.0F : args.x[i];
}

void relu_grad(const UnaryArgs& args, const Worker& worker) {
  const Share share = elements_of(args.size, worker);
  EDGE_INDEPENDENT
  for (Index i = share.begin; i < share.end; ++i) {
    const float d_y = args.x[i];  // read whatever y is: a conditional load would be a masked one
    args.out[i] = args.y[i] > 0.0F ? d_y : 0.0F;
  }
}

void add(const BinaryArgs& args, const Worker& worker) { broadcast<Add>(args, worker); }
void sub(const BinaryArgs& args, const Worker& worker) { broadcast<Sub>(args, worker); }
void mul(const BinaryArgs& args, const Worker& worker) { broadcast<Mul>(args, worker); }

void copy(const CopyArgs& args, const Worker& worker) {
  const Share share = elements_of(args.bytes, worker);
  if (args.from == args.to || share.begin == share.end) return;
  __builtin_memcpy(args.to + share.begin, args.from + share.begin,
                   static_cast<std::size_t>(share.end - share.begin));
}

}  // namespace EDGE_ISA
}  // namespace edge
