// Updates in place, float32, dense.
//
// adamw (the rule of torch.optim.AdamW; t is the number of this step, from 1):
//   param -= lr * weight_decay * param
//   m += (1 - beta1) (grad - m);  v = beta2 v + (1 - beta2) grad^2
//   param -= lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + epsilon)
// blend: slot += rate (value - slot); a rate of 1 copies.
//
// Bytes moved: what is written twice, what is only read once.
#pragma once

#include "kernels/worker.h"

namespace edge {

struct AdamwArgs {
  float* param = nullptr;
  const float* grad = nullptr;
  const float* lr = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  const float* t = nullptr;
  Index size = 0;
  float beta1 = 0.0F, beta2 = 0.0F, epsilon = 0.0F, weight_decay = 0.0F;
};

struct BlendArgs {
  float* slot = nullptr;
  const float* value = nullptr;
  Index size = 0;
  float rate = 1.0F;
};

}  // namespace edge
