// What the tests of device kernels share: memory that ends where AddressSanitizer looks, every
// order of threads and blocks, numbers that repeat.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "check.h"
#include "cuda/emulation.h"

namespace emulated {

using edge::cuda::EmulatedLauncher;
using edge::cuda::Order;
using edge::cuda::u16;
using edge::cuda::u32;
using edge::cuda::u64;

// Poisoned, of exactly `bytes`, and aligned as a driver aligns.
class Workspace {
 public:
  explicit Workspace(u64 bytes)
      : memory_(std::aligned_alloc(edge::cuda::kAlignment, edge::cuda::aligned(bytes)),
                &std::free) {
    std::memset(memory_.get(), 0xA5, bytes);
  }
  void* get() { return memory_.get(); }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;
};

class Numbers {
 public:
  explicit Numbers(u32 seed) : state_(seed) {}
  u32 bits() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return static_cast<u32>(state_ >> 33U) ^ static_cast<u32>(state_ >> 60U);
  }
  // In (-1, 1), denser around 0.
  float value() {
    const float a = static_cast<float>(bits() & 0xffffffU) / 16777216.0F;
    const float b = static_cast<float>(bits() & 0xffffffU) / 16777216.0F;
    return a - b;
  }

 private:
  u64 state_;
};

template <class Body>
void for_every_order(const Body& body) {
  for (const Order order : {Order::forward, Order::reverse, Order::shuffled, Order::concurrent}) {
    for (const u32 processors : {1U, 3U}) {
      EmulatedLauncher launcher(processors, order);
      body(launcher);
    }
  }
}

}  // namespace emulated
