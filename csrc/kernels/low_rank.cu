#include "cuda/api.h"
#include "cuda/device.cuh"
#include "kernels/low_rank.cuh"

namespace edge::cuda {

static_assert(kMostSvdRank == low_rank::kMostRank && kMostPowerRank == low_rank::kMostWidth,
              "what the caller checks is what the kernels hold");

cudaError_t svd_workspace_bytes(std::uint64_t m, std::uint64_t n, std::uint64_t rank, bool step,
                                std::uint64_t& bytes) {
  const StreamLauncher launcher(nullptr);
  if (launcher.error() != cudaSuccess) return launcher.error();
  low_rank::Matrix it{};
  low_rank::Buffers buffers{};
  it.m = m;
  it.n = n;
  it.width = step ? rank : low_rank::width_of(m, n, rank);
  bytes = low_rank::layout(it, launcher.processors(), nullptr, step ? nullptr : &buffers);
  return cudaSuccess;
}

cudaError_t svd_cuda(const SvdCall& call, void* workspace, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  low_rank::truncated_svd(launcher, call.a, call.m, call.n,
                          {call.rank, call.seed, call.warm, call.warm_rank, call.iterations,
                           call.tolerance, call.energy},
                          {call.u, call.s, call.vt, call.error, call.used, call.first_bad},
                          workspace);
  return launcher.error();
}

cudaError_t power_step_cuda(const PowerCall& call, void* workspace, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  low_rank::power_step(launcher, call.a, call.m, call.n, call.rank, call.q, call.p, call.next_q,
                       call.first_bad, workspace);
  return launcher.error();
}

}  // namespace edge::cuda
