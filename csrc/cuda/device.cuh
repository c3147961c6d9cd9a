// Runs a kernel of execution.h on a device. Only nvcc reads this.
#pragma once

#include <cuda_runtime.h>

#include "cuda/execution.h"

namespace edge::cuda {

template <int kThreadsPerBlock>
class DeviceBlock {
 public:
  static constexpr int kThreads = kThreadsPerBlock;
  static constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0, "whole warps");

  // A register: a thread asks only for its own.
  template <class T>
  class Private {
   public:
    __device__ __forceinline__ T& operator[](int) { return value_; }

   private:
    T value_;
  };

  __device__ __forceinline__ u32 index() const { return blockIdx.x; }
  __device__ __forceinline__ u32 blocks() const { return gridDim.x; }

  template <class Body>
  __device__ __forceinline__ void each(const Body& body) {
    body(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class T>
  __device__ __forceinline__ T uniform(const T& shared) {
    const T value = shared;
    __syncthreads();
    return value;
  }
  __device__ __forceinline__ u32 add(u32* at, u32 value) { return atomicAdd(at, value); }
  __device__ __forceinline__ void min(u32* at, u32 value) { atomicMin(at, value); }

  // `warps` is shared memory for kWarps values.
  template <class T>
  __device__ __forceinline__ T exclusive_sum(Private<T>& values, T* warps) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const T own = values[0];
    T sum = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const T other = __shfl_up_sync(0xffffffffU, sum, static_cast<unsigned>(step));
      if (lane >= step) sum += other;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    T before{};
    T total{};
    for (int w = 0; w < kWarps; ++w) {
      const T part = warps[w];
      if (w < warp) before += part;
      total += part;
    }
    __syncthreads();
    values[0] = before + sum - own;
    return total;
  }
  template <class T, class Combine>
  __device__ __forceinline__ T reduce(Private<T>& values, T* warps, const Combine& combine) {
    T value = values[0];
#pragma unroll
    for (int half = 16; half > 0; half /= 2) {
      value = combine(value, __shfl_xor_sync(0xffffffffU, value, half));
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    T result = warps[0];
    for (int w = 1; w < kWarps; ++w) result = combine(result, warps[w]);
    __syncthreads();
    return result;
  }
  // Whether every other block of the grid has come this far; what those wrote before is then
  // visible through fresh(). `flag` is shared.
  __device__ __forceinline__ bool last(u32* finished, u32* flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *flag = atomicAdd(finished, 1U) == gridDim.x - 1 ? 1U : 0U;
    __syncthreads();
    const bool is_last = *flag != 0;
    __syncthreads();
    if (is_last) __threadfence();
    return is_last;
  }
  // Past the first cache, which other multiprocessors do not write to.
  template <class T>
  __device__ __forceinline__ T fresh(const T* at) {
    return __ldcg(at);
  }
  // One word carries value and flag, so no fence is needed between the two.
  __device__ __forceinline__ void publish(u64* at, u64 value) {
    *reinterpret_cast<volatile u64*>(at) = value;
  }
  __device__ __forceinline__ u64 awaited(const u64* at) {
    u64 value = 0;
    while ((value = *reinterpret_cast<const volatile u64*>(at)) == 0) {
    }
    return value;
  }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) entry(const typename Kernel::Args args) {
  __shared__ typename Kernel::Shared shared;
  DeviceBlock<Kernel::kThreads> block;
  Kernel::run(block, shared, args);
}

// Launches in order on one stream; after the first error nothing more is launched.
class StreamLauncher {
 public:
  explicit StreamLauncher(cudaStream_t stream) : stream_(stream) {
    int device = 0;
    int processors = 0;
    error_ = cudaGetDevice(&device);
    if (error_ == cudaSuccess) {
      error_ = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    }
    processors_ = static_cast<u32>(processors);
  }

  u64 processors() const { return processors_; }
  cudaError_t error() const { return error_; }
  void fill(void* memory, unsigned char byte, u64 bytes) {
    if (error_ == cudaSuccess) error_ = cudaMemsetAsync(memory, byte, bytes, stream_);
  }
  template <class Kernel>
  void launch(u64 blocks, const typename Kernel::Args& args) {
    if (error_ != cudaSuccess) return;
    if (blocks == 0 || blocks > 0x7fffffffU) {
      error_ = cudaErrorInvalidConfiguration;
      return;
    }
    entry<Kernel><<<static_cast<u32>(blocks), Kernel::kThreads, 0, stream_>>>(args);
    error_ = cudaGetLastError();
  }

 private:
  cudaStream_t stream_;
  u32 processors_ = 0;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace edge::cuda
