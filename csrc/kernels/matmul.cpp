#include "kernels/matmul.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

GemmArgs matrix(const MatmulArgs& args, Index number) {
  GemmArgs g = args.gemm;
  g.c += number * g.m * g.n;
  for (Index d = args.ndim - 1; d >= 0; --d) {
    const Index i = number % args.dims[d];
    number /= args.dims[d];
    g.a += i * args.a_strides[d];
    g.b += i * args.b_strides[d];
  }
  return g;
}

}  // namespace

void matmul(const MatmulArgs& args, const Worker& worker) {
  Index count = 1;
  for (Index d = 0; d < args.ndim; ++d) count *= args.dims[d];
  if (count < worker.count) {  // too few matrices to share out: all workers on each
    for (Index i = 0; i < count; ++i) gemm(matrix(args, i), worker);
    return;
  }
  const Share share = share_of(count, worker);
  const Worker alone{0, 1, worker.scratch};
  for (Index i = share.begin; i < share.end; ++i) gemm(matrix(args, i), alone);
}

}  // namespace EDGE_ISA
}  // namespace edge
