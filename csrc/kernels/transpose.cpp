#include "kernels/transpose.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

void transpose(const TransposeArgs& args, const Worker& worker) {
  const Index last = args.ndim - 1, row = args.dims[last], step = args.strides[last];
  Index rows = 1;
  for (Index d = 0; d < last; ++d) rows *= args.dims[d];
  const Share share = share_of(rows, worker);
  for (Index r = share.begin; r < share.end; ++r) {
    Index rest = r, offset = 0;
    for (Index d = last - 1; d >= 0; --d) {
      offset += rest % args.dims[d] * args.strides[d];
      rest /= args.dims[d];
    }
    const float* from = args.x + offset;
    float* to = args.y + r * row;
    for (Index i = 0; i < row; ++i) to[i] = from[i * step];
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
