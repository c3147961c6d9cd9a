#include "cuda/api.h"
#include "cuda/device.cuh"
#include "kernels/sampled_softmax.cuh"

namespace edge::cuda {
namespace {

softmax::Problem problem_of(const SoftmaxCall& call) {
  softmax::Problem it{};
  it.features = call.features;
  it.rows = call.rows;
  it.classes = call.classes;
  it.labels = call.labels;
  it.correction = call.correction;
  it.updated = call.updated;
  it.d_features = call.d_features;
  it.d_rows = call.d_rows;
  it.loss = call.loss;
  it.batch = call.batch;
  it.width = call.width;
  it.count = call.count;
  it.row_count = call.row_count;
  it.positives = call.positives;
  it.correction_of_all = call.correction_of_all;
  it.scale = call.scale;
  it.lr = call.lr;
  it.own_positives = call.own_positives;
  return it;
}

}  // namespace

cudaError_t softmax_workspace_bytes(const SoftmaxCall& call, std::uint64_t& bytes) {
  const StreamLauncher launcher(nullptr);
  softmax::Problem it = problem_of(call);
  if (launcher.error() == cudaSuccess) bytes = softmax::layout(it, launcher.processors(), nullptr);
  return launcher.error();
}

cudaError_t softmax_cuda(const SoftmaxCall& call, void* workspace, cudaStream_t stream) {
  StreamLauncher launcher(stream);
  softmax::run(launcher, problem_of(call), workspace);
  return launcher.error();
}

}  // namespace edge::cuda
