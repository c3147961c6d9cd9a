// Runs a kernel of execution.h on the host. For tests; nothing of it is in what is installed.
#pragma once

#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <vector>

#include "cuda/execution.h"

namespace edge::cuda {

// The order of threads within a phase, and of blocks within a grid; a right kernel cannot tell.
// Blocks run one after another, and `concurrent` ones at once, each on a thread that makes way at
// every barrier.
enum class Order { forward, reverse, shuffled, concurrent };

inline std::vector<int> order_of(int count, Order order, u32 seed) {
  std::vector<int> places(static_cast<std::size_t>(count));
  std::iota(places.begin(), places.end(), 0);
  if (order == Order::reverse) {
    for (int& place : places) place = count - 1 - place;
  }
  if (order == Order::shuffled) {
    for (std::size_t i = places.size(); i > 1; --i) {
      seed = seed * 1664525U + 1013904223U;
      std::swap(places[i - 1], places[(seed >> 8) % i]);
    }
  }
  return places;
}

template <class T>
void poison(T& memory) {
  static_assert(std::is_trivially_copyable_v<T>, "device memory holds plain data");
  std::memset(static_cast<void*>(&memory), 0xA5, sizeof(T));
}

template <int kThreadsPerBlock>
class EmulatedBlock {
 public:
  static constexpr int kThreads = kThreadsPerBlock;

  template <class T>
  class Private {
   public:
    Private() : values_(kThreads) {
      for (Slot& slot : values_) poison(slot);
    }
    T& operator[](int thread) { return values_[static_cast<std::size_t>(thread)].value; }

   private:
    struct Slot {
      T value;  // may be an array
    };
    std::vector<Slot> values_;
  };

  EmulatedBlock(u32 index, u32 blocks, const std::vector<int>& threads, bool concurrent)
      : index_(index), blocks_(blocks), threads_(threads), concurrent_(concurrent) {}

  u32 index() const { return index_; }
  u32 blocks() const { return blocks_; }

  template <class Body>
  void each(const Body& body) {
    for (const int thread : threads_) body(thread);
    if (concurrent_) std::this_thread::yield();
  }
  template <class T>
  T uniform(const T& shared) {
    return shared;
  }
  template <class T>
  T add(T* at, T value) {
    return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL);
  }
  void min(u32* at, u32 value) {
    u32 seen = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value < seen && !__atomic_compare_exchange_n(at, &seen, value, false, __ATOMIC_RELAXED,
                                                        __ATOMIC_RELAXED)) {
    }
  }
  // Sums of the threads before each; returns the sum of all.
  template <class T>
  T exclusive_sum(Private<T>& values, T*) {
    T sum{};
    for (int thread = 0; thread < kThreads; ++thread) {
      const T value = values[thread];
      values[thread] = sum;
      sum = static_cast<T>(sum + value);
    }
    return sum;
  }
  // The same tree as on a device: within warps by halves, then the warps in order.
  template <class T, class Combine>
  T reduce(Private<T>& values, T*, const Combine& combine) {
    for (int half = 16; half > 0; half /= 2) {
      std::array<T, kThreads> before;
      for (int t = 0; t < kThreads; ++t) before[static_cast<std::size_t>(t)] = values[t];
      for (int t = 0; t < kThreads; ++t) {
        values[t] = combine(values[t], before[static_cast<std::size_t>(t ^ half)]);
      }
    }
    T result = values[0];
    for (int warp = 1; warp < kThreads / 32; ++warp) result = combine(result, values[warp * 32]);
    return result;
  }
  bool last(u32* finished, u32*) { return add(finished, 1U) == blocks_ - 1; }
  template <class T>
  T fresh(const T* at) {
    return *at;
  }
  void publish(u64* at, u64 value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
  u64 awaited(const u64* at) {
    u64 value = 0;
    while ((value = __atomic_load_n(at, __ATOMIC_ACQUIRE)) == 0) {
      if (!concurrent_) throw std::logic_error("a block waits for one that has not run");
      std::this_thread::yield();
    }
    return value;
  }

 private:
  u32 index_;
  u32 blocks_;
  const std::vector<int>& threads_;
  bool concurrent_;
};

class EmulatedLauncher {
 public:
  EmulatedLauncher(u32 processors, Order order) : processors_(processors), order_(order) {}

  u64 processors() const { return processors_; }
  void fill(void* memory, unsigned char byte, u64 bytes) { std::memset(memory, byte, bytes); }
  template <class Kernel>
  void launch(u64 blocks, const typename Kernel::Args& args) {
    if (blocks == 0 || blocks > 0x7fffffffU) throw std::logic_error("no such grid");
    static_assert(sizeof(typename Kernel::Shared) <= 48 * 1024, "more than any device gives");
    static_assert(std::is_trivially_copyable_v<typename Kernel::Args>,
                  "arguments are copied as bytes");
    const std::vector<int> threads = order_of(Kernel::kThreads, order_, 7);
    const bool concurrent = order_ == Order::concurrent;
    const auto run = [&](int index) {
      const auto shared = std::make_unique<typename Kernel::Shared>();
      poison(*shared);
      EmulatedBlock<Kernel::kThreads> block(static_cast<u32>(index), static_cast<u32>(blocks),
                                            threads, concurrent);
      Kernel::run(block, *shared, args);
    };
    std::vector<std::thread> running;
    for (const int index : order_of(static_cast<int>(blocks), order_, 11)) {
      if (concurrent) {
        running.emplace_back(run, index);
      } else {
        run(index);
      }
    }
    for (std::thread& thread : running) thread.join();
  }

 private:
  u32 processors_;
  Order order_;
};

}  // namespace edge::cuda
