#include "kernels/gemm_sgd.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

void gemm_sgd(const GemmSgdArgs& args, const Worker& worker) {
  const Index m = args.gemm.m, n = args.gemm.n, k = args.gemm.k;
  const Index step = gemm_sgd_rows(m, n);
  const Share share = share_of(ceil_div(m, kMaxTileRows), worker);
  const Index begin = smaller(m, share.begin * kMaxTileRows);
  const Index end = smaller(m, share.end * kMaxTileRows);
  float* block = worker.scratch + gemm_scratch_floats(k);
  const Worker alone{0, 1, worker.scratch};
  for (Index row = begin; row < end; row += step) {
    GemmArgs product = args.gemm;
    product.a += args.gemm.trans_a ? row : row * k;
    product.a_step = args.gemm.trans_a ? m : k;
    product.m = smaller(step, end - row);
    product.c = block;
    gemm(product, alone);
    SgdArgs update = args.sgd;
    update.param += row * n;
    if (update.velocity != nullptr) update.velocity += row * n;
    update.grad = block;
    update.size = product.m * n;
    sgd(update, alone);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
