#include "kernels/sgd.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

void sgd(const SgdArgs& args, const Worker& worker) {
  const Share grains = share_of(ceil_div(args.size, 16), worker);
  const Index begin = smaller(args.size, grains.begin * 16),
              end = smaller(args.size, grains.end * 16);
  float* param = args.param;
  float* velocity = args.velocity;
  const float* grad = args.grad;
  const float lr = *args.lr, momentum = args.momentum, weight_decay = args.weight_decay;
  if (velocity == nullptr) {
    EDGE_INDEPENDENT
    for (Index i = begin; i < end; ++i) param[i] -= lr * (grad[i] + weight_decay * param[i]);
  } else if (args.nesterov) {
    EDGE_INDEPENDENT
    for (Index i = begin; i < end; ++i) {
      const float g = grad[i] + weight_decay * param[i];
      const float v = momentum * velocity[i] + g;
      velocity[i] = v;
      param[i] -= lr * (g + momentum * v);
    }
  } else {
    EDGE_INDEPENDENT
    for (Index i = begin; i < end; ++i) {
      const float g = grad[i] + weight_decay * param[i];
      const float v = momentum * velocity[i] + g;
      velocity[i] = v;
      param[i] -= lr * v;
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
