#include <vector>

#include "cuda/api.h"
#include "cuda/device.cuh"
#include "kernels/selection.cuh"

namespace edge::cuda {
namespace {

struct Joined {
  std::vector<selection::Tensor> tensors;
  u64 n = 0;
};

Joined joined(const SelectionCall& call) {
  Joined out;
  for (u32 i = 0; i < call.count; ++i) {
    const SelectedFrom& from = call.tensors[i];
    out.tensors.push_back({from.x, from.gradient, from.momentum, out.n});
    out.n += from.n;
  }
  return out;
}

template <class Bits>
selection::Result<Bits> result_of(const SelectionCall& call) {
  return {reinterpret_cast<u32*>(call.indices), static_cast<Bits*>(call.values),
          reinterpret_cast<u32*>(call.first_nan), reinterpret_cast<u32*>(call.starts)};
}

}  // namespace

std::uint64_t top_k_workspace_bytes(std::uint64_t n, std::uint64_t k, Element element,
                                    std::uint32_t tensors) {
  return element == Element::float32 ? selection::workspace_bytes<u32>(n, k, tensors)
                                     : selection::workspace_bytes<u16>(n, k, tensors);
}

cudaError_t top_k_cuda(const SelectionCall& call, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  const Joined from = joined(call);
  if (call.element == Element::float32) {
    selection::top_k<u32>(launcher, from.tensors.data(), call.count, from.n, call.k,
                          selection::kFloat32, result_of<u32>(call), call.workspace);
  } else {
    const auto infinity =
        call.element == Element::float16 ? selection::kFloat16 : selection::kBfloat16;
    selection::top_k<u16>(launcher, from.tensors.data(), call.count, from.n, call.k, infinity,
                          result_of<u16>(call), call.workspace);
  }
  return launcher.error();
}

cudaError_t top_k_feedback_cuda(const SelectionCall& call, float momentum_factor, bool nesterov,
                                bool masked, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  const Joined from = joined(call);
  selection::top_k_feedback(launcher, from.tensors.data(), call.count, from.n, call.k,
                            {momentum_factor, nesterov, masked}, result_of<u32>(call),
                            call.workspace);
  return launcher.error();
}

std::uint64_t above_workspace_bytes(std::uint64_t n, Element element) {
  return element == Element::float32 ? selection::above_workspace_bytes<u32>(n)
                                     : selection::above_workspace_bytes<u16>(n);
}

cudaError_t above_cuda(const AboveCall& call, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  const selection::Tensor from{const_cast<void*>(call.x), nullptr, nullptr, 0};
  u32* const indices = reinterpret_cast<u32*>(call.indices);
  u32* const first_nan = reinterpret_cast<u32*>(call.first_nan);
  u32* const count = reinterpret_cast<u32*>(call.count);
  if (call.element == Element::float32) {
    selection::above<u32>(launcher, from, call.n, call.threshold, selection::kFloat32, call.room,
                          count, {indices, static_cast<u32*>(call.values), first_nan, nullptr},
                          call.workspace);
  } else {
    const auto infinity =
        call.element == Element::float16 ? selection::kFloat16 : selection::kBfloat16;
    selection::above<u16>(launcher, from, call.n, call.threshold, infinity, call.room, count,
                          {indices, static_cast<u16*>(call.values), first_nan, nullptr},
                          call.workspace);
  }
  return launcher.error();
}

}  // namespace edge::cuda
