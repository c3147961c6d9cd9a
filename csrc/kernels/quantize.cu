#include "cuda/api.h"
#include "cuda/device.cuh"
#include "kernels/quantize.cuh"

namespace edge::cuda {

using quantizing::Half;

cudaError_t narrow_cuda(const float* x, Element to, void* out, std::uint64_t n,
                        cudaStream_t stream) {
  StreamLauncher launcher(stream);
  u16* const h = static_cast<u16*>(out);
  if (to == Element::float16) {
    quantizing::convert<Half::to_float16>(launcher, {x, nullptr, nullptr, h, n});
  } else {
    quantizing::convert<Half::to_bfloat16>(launcher, {x, nullptr, nullptr, h, n});
  }
  return launcher.error();
}

cudaError_t widen_cuda(const void* x, Element from, float* out, std::uint64_t n,
                       cudaStream_t stream) {
  StreamLauncher launcher(stream);
  const u16* const h = static_cast<const u16*>(x);
  if (from == Element::float16) {
    quantizing::convert<Half::from_float16>(launcher, {nullptr, h, out, nullptr, n});
  } else {
    quantizing::convert<Half::from_bfloat16>(launcher, {nullptr, h, out, nullptr, n});
  }
  return launcher.error();
}

cudaError_t quantize_cuda(const QuantizeCall& call, cudaStream_t stream) {
  using quantizing::Norm;
  using quantizing::Rounding;
  StreamLauncher launcher(stream);
  quantizing::Quantize::Args args{};
  args.x = call.x;
  args.q = call.q;
  args.scales = call.scales;
  args.first_bad = reinterpret_cast<u32*>(call.first_bad);
  args.n = call.n;
  args.block = call.block;
  args.levels = call.levels;
  args.rounding = call.quantizer == Quantizer::nearest ? Rounding::nearest
                  : call.quantizer == Quantizer::sign  ? Rounding::sign
                                                       : Rounding::stochastic;
  args.norm = call.quantizer == Quantizer::stochastic_l2 ? Norm::l2 : Norm::max;
  quantizing::quantize(launcher, args, call.seed);
  return launcher.error();
}

cudaError_t dequantize_cuda(const void* q, const float* scales, float* x, std::uint64_t n,
                            std::uint64_t block, bool sign, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  quantizing::dequantize(launcher, {q, scales, x, n, block, sign});
  return launcher.error();
}

}  // namespace edge::cuda
