// How a device kernel is written here, so that one source runs on a device and, block after block,
// on the host, where every test can see it.
//
// A kernel is a struct:
//   struct Sum {
//     static constexpr int kThreads = 256;
//     struct Args { ... };     plain data, passed by value
//     struct Shared { ... };   the block's shared memory: trivial, and left over at the start
//     template <class Block> EDGE_DEVICE static void run(Block& block, Shared& shared, const
//     Args&);
//   };
// `run` is written in phases: block.each(body) calls body(thread) for every thread and then meets
// at a barrier. What a thread keeps from phase to phase is a Block::Private<T>. Between phases
// there is only what all threads agree on; a word of shared memory is read there through
// block.uniform(), which keeps the next phase from overwriting it too early.
//
// Two blocks types have this interface: DeviceBlock (device.cuh) and EmulatedBlock (emulation.h).
// The emulation runs the threads of a phase in an order that it is told, starts with poisoned
// memory, and refuses to wait for a block that has not run; a missing barrier, a race within a
// phase, an uninitialised word or a wrong order of blocks then changes the result or stops the
// test.
//
// An algorithm of several launches is a function over a launcher, which has
//   launcher.launch<Kernel>(blocks, args), launcher.fill(pointer, byte, bytes),
//   launcher.processors()
// and neither allocates nor waits. It fills a device with a few blocks for each of its processors.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define EDGE_DEVICE __device__ __forceinline__
#define EDGE_BOTH __host__ __device__ __forceinline__
#define EDGE_UNROLL _Pragma("unroll")
#else
#define EDGE_DEVICE inline
#define EDGE_BOTH inline
#define EDGE_UNROLL
#endif

namespace edge::cuda {

using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

EDGE_BOTH constexpr u64 ceil_div(u64 a, u64 b) { return (a + b - 1) / b; }
// Blocks of a workspace start at multiples of this, as memory from the driver does.
constexpr u64 kAlignment = 256;
EDGE_BOTH constexpr u64 aligned(u64 bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }

// Hands out the parts of one workspace in turn. With a null base it only measures.
class Carve {
 public:
  explicit Carve(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <class T>
  T* take(u64 count) {
    unsigned char* at = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += aligned(count * sizeof(T));
    return reinterpret_cast<T*>(at);
  }
  u64 bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  u64 bytes_ = 0;
};

// Four elements as one load or store of 4 sizeof(T) bytes.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

template <class T>
EDGE_DEVICE bool aligned_for_four(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % sizeof(Four<T>) == 0;
}

// Four elements from `at` on; where fewer are left the rest are not touched.
template <class T>
EDGE_DEVICE int load_four(const T* x, u64 at, u64 n, bool whole, T (&out)[4]) {
  if (at + 4 <= n) {
    if (whole) {
      const Four<T> four = *reinterpret_cast<const Four<T>*>(x + at);
      for (int j = 0; j < 4; ++j) out[j] = four.at[j];
    } else {
      for (int j = 0; j < 4; ++j) out[j] = x[at + static_cast<u64>(j)];
    }
    return 4;
  }
  int count = 0;
  for (; count < 4 && at + static_cast<u64>(count) < n; ++count) {
    out[count] = x[at + static_cast<u64>(count)];
  }
  return count;
}

template <class T>
EDGE_DEVICE void store_some(T* x, u64 at, int count, bool whole, const T (&in)[4]) {
  if (whole && count == 4) {
    Four<T> four;
    for (int j = 0; j < 4; ++j) four.at[j] = in[j];
    *reinterpret_cast<Four<T>*>(x + at) = four;
    return;
  }
  for (int j = 0; j < count; ++j) x[at + static_cast<u64>(j)] = in[j];
}

EDGE_DEVICE u32 bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  u32 bits = 0;
  static_assert(sizeof bits == sizeof value, "IEEE binary32");
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}
EDGE_DEVICE float float_of(u32 bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value = 0.0F;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

}  // namespace edge::cuda
