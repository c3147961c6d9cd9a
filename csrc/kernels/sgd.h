// One pass of stochastic gradient descent, in place (the rule of torch.optim.SGD without
// dampening).
//
//   g = grad + weight_decay * param
//   velocity = momentum * velocity + g           (where there is a velocity)
//   step = nesterov ? g + momentum * velocity : velocity;  g without a velocity
//   param -= lr * step
//
// All float32 of one size, dense; velocity may be null. Bytes moved: param and velocity twice, grad
// once.
#pragma once

#include "kernels/worker.h"

namespace edge {

struct SgdArgs {
  float* param = nullptr;
  const float* grad = nullptr;
  const float* lr = nullptr;
  float* velocity = nullptr;
  Index size = 0;
  float momentum = 0.0F, weight_decay = 0.0F;
  bool nesterov = false;
};

}  // namespace edge
