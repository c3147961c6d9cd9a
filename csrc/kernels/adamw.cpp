#include "kernels/adamw.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

Share elements_of(Index size, const Worker& worker) {
  const Share grains = share_of(ceil_div(size, 16), worker);
  return {smaller(size, grains.begin * 16), smaller(size, grains.end * 16)};
}

}  // namespace

void adamw(const AdamwArgs& args, const Worker& worker) {
  const Share share = elements_of(args.size, worker);
  const double t = static_cast<double>(*args.t), lr = static_cast<double>(*args.lr);
  // In float64: 1 - beta2 of 0.999 has only three digits left in float32.
  const double beta1 = static_cast<double>(args.beta1), beta2 = static_cast<double>(args.beta2);
  const float step = static_cast<float>(lr / (1.0 - __builtin_pow(beta1, t)));
  const float root = static_cast<float>(__builtin_sqrt(1.0 - __builtin_pow(beta2, t)));
  const float keep = static_cast<float>(1.0 - lr * static_cast<double>(args.weight_decay));
  const float new1 = static_cast<float>(1.0 - beta1), new2 = static_cast<float>(1.0 - beta2);
  const float old2 = args.beta2, epsilon = args.epsilon;
  float *param = args.param, *m = args.m, *v = args.v;
  const float* grad = args.grad;
  EDGE_INDEPENDENT
  for (Index i = share.begin; i < share.end; ++i) {
    const float g = grad[i];
    m[i] += new1 * (g - m[i]);
    v[i] = old2 * v[i] + new2 * g * g;
    param[i] = keep * param[i] - step * (m[i] / (__builtin_sqrtf(v[i]) / root + epsilon));
  }
}

void blend(const BlendArgs& args, const Worker& worker) {
  const Share share = elements_of(args.size, worker);
  float* slot = args.slot;
  const float* value = args.value;
  const float rate = args.rate;
  if (rate == 1.0F) {
    for (Index i = share.begin; i < share.end; ++i) slot[i] = value[i];
    return;
  }
  EDGE_INDEPENDENT
  for (Index i = share.begin; i < share.end; ++i) slot[i] += rate * (value[i] - slot[i]);
}

}  // namespace EDGE_ISA
}  // namespace edge
