#include "cuda/api.h"
#include "cuda/device.cuh"
#include "kernels/selection.cuh"

namespace edge::cuda {

std::uint64_t top_k_workspace_bytes(std::uint64_t n, std::uint64_t k, Element element) {
  return element == Element::float32 ? selection::workspace_bytes<u32>(n, k)
                                     : selection::workspace_bytes<u16>(n, k);
}

cudaError_t top_k_cuda(const void* x, Element element, std::uint64_t n, std::uint32_t k,
                       std::int32_t* indices, void* values, std::int32_t* first_nan,
                       void* workspace, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  u32* const places = reinterpret_cast<u32*>(indices);
  u32* const nan = reinterpret_cast<u32*>(first_nan);
  if (element == Element::float32) {
    selection::top_k<u32>(launcher, static_cast<const u32*>(x), n, k, selection::kFloat32,
                          {places, static_cast<u32*>(values), nan}, workspace);
  } else {
    const auto infinity = element == Element::float16 ? selection::kFloat16 : selection::kBfloat16;
    selection::top_k<u16>(launcher, static_cast<const u16*>(x), n, k, infinity,
                          {places, static_cast<u16*>(values), nan}, workspace);
  }
  return launcher.error();
}

cudaError_t top_k_feedback_cuda(const float* gradient, float* residual, float* momentum,
                                float momentum_factor, bool nesterov, bool masked, std::uint64_t n,
                                std::uint32_t k, std::int32_t* indices, float* values,
                                std::int32_t* first_nan, void* workspace, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  selection::top_k_feedback(launcher,
                            {gradient, residual, momentum, momentum_factor, nesterov, masked}, n, k,
                            {reinterpret_cast<u32*>(indices), reinterpret_cast<u32*>(values),
                             reinterpret_cast<u32*>(first_nan)},
                            workspace);
  return launcher.error();
}

}  // namespace edge::cuda
