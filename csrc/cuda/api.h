// The device kernels as functions of a stream. Every pointer but the stream is device memory;
// nothing is allocated, nothing waits, and the result is that of the launches (cudaGetLastError),
// not of the work. Contracts: csrc/kernels/*.cuh. Arguments are checked by the caller
// (bindings/cuda.cpp).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace edge::cuda {

enum class Element { float32, float16, bfloat16 };

// One tensor of a selection, described in host memory. With feedback x is the residual, and
// `momentum` null or there for all.
struct SelectedFrom {
  void* x;  // only read without feedback
  const float* gradient;
  float* momentum;
  std::uint64_t n;
};
struct SelectionCall {
  const SelectedFrom* tensors;
  std::uint32_t count;
  Element element;
  std::uint32_t k;
  std::int32_t* indices;
  void* values;
  std::int32_t* first_nan;  // -1 where there is none
  std::int32_t* starts;     // (count + 1), or null: indices are of all tensors joined
  void* workspace;
};

std::uint64_t top_k_workspace_bytes(std::uint64_t n, std::uint64_t k, Element element,
                                    std::uint32_t tensors);
cudaError_t top_k_cuda(const SelectionCall& call, cudaStream_t stream);
cudaError_t top_k_feedback_cuda(const SelectionCall& call, float momentum_factor, bool nesterov,
                                bool masked, cudaStream_t stream);

// Elements whose magnitude, as an integer, is at least `threshold`; `count` receives how many there
// are.
struct AboveCall {
  const void* x;
  Element element;
  std::uint64_t n;
  std::uint32_t threshold;
  std::uint32_t room;
  std::int32_t* indices;
  void* values;
  std::int32_t* count;
  std::int32_t* first_nan;
  void* workspace;
};
std::uint64_t above_workspace_bytes(std::uint64_t n, Element element);
cudaError_t above_cuda(const AboveCall& call, cudaStream_t stream);

// See sampled_softmax.cuh. Null: classes (every row is one), correction (then correction_of_all),
// and of d_rows and `updated` one.
struct SoftmaxCall {
  const float* features;
  const std::int32_t* labels;
  const float* rows;
  const std::int32_t* classes;
  const float* correction;
  float* loss;
  float* d_features;
  float* d_rows;
  float* updated;
  std::uint64_t batch, width, count, row_count, positives;
  float correction_of_all, scale, lr;
  bool own_positives;
};
// Of the current device, whose number of processors it depends on.
cudaError_t softmax_workspace_bytes(const SoftmaxCall& call, std::uint64_t& bytes);
cudaError_t softmax_cuda(const SoftmaxCall& call, void* workspace, cudaStream_t stream);

// See quantize.cuh.
cudaError_t narrow_cuda(const float* x, Element to, void* out, std::uint64_t n,
                        cudaStream_t stream);
cudaError_t widen_cuda(const void* x, Element from, float* out, std::uint64_t n,
                       cudaStream_t stream);

enum class Quantizer { nearest, stochastic_max, stochastic_l2, sign };
struct QuantizeCall {
  const float* x;
  void* q;
  float* scales;
  std::int32_t* first_bad;
  std::uint64_t n, block;
  Quantizer quantizer;
  float levels;
  std::uint64_t seed;
};
cudaError_t quantize_cuda(const QuantizeCall& call, cudaStream_t stream);
cudaError_t dequantize_cuda(const void* q, const float* scales, float* x, std::uint64_t n,
                            std::uint64_t block, bool sign, cudaStream_t stream);

// See low_rank.cuh.
struct SvdCall {
  const float* a;
  std::uint64_t m, n, rank;
  const float* warm;
  std::uint64_t warm_rank;
  std::uint64_t seed, iterations;
  double tolerance, energy;
  float *u, *s, *vt, *error;
  std::int32_t *used, *first_bad;
};
struct PowerCall {
  const float* a;
  std::uint64_t m, n, rank;
  const float* q;
  float *p, *next_q;
  std::int32_t* first_bad;
};
constexpr std::uint64_t kMostSvdRank = 120;
constexpr std::uint64_t kMostPowerRank = 128;
// Of the current device.
cudaError_t svd_workspace_bytes(std::uint64_t m, std::uint64_t n, std::uint64_t rank, bool step,
                                std::uint64_t& bytes);
cudaError_t svd_cuda(const SvdCall& call, void* workspace, cudaStream_t stream);
cudaError_t power_step_cuda(const PowerCall& call, void* workspace, cudaStream_t stream);

}  // namespace edge::cuda
