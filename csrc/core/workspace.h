// What a kernel outside a plan runs with: an instruction set, threads, and memory that stays from
// call to call. A fresh block of 40 MB costs 20 ms of page faults, more than most kernels run for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/cpu.h"
#include "core/threads.h"

namespace edge {

// One caller at a time. Blocks are made once and kept until a larger one is asked for, or
// release().
class Workspace {
 public:
  static constexpr std::size_t kBlocks = 8;
  static constexpr int kMaxThreads = 256;

  // Throws std::invalid_argument for threads outside 1..256 or an instruction set that cannot run
  // here.
  Workspace(int threads, const std::string& isa);

  const Kernels& kernels() const { return kernels_; }
  int threads() const { return pool_.threads(); }

  // At least `count` elements of T, 64-byte aligned; contents are left over from before. Two blocks
  // of different numbers never overlap; asking again for the same number invalidates the old one.
  template <class T>
  T* block(std::size_t number, std::uint64_t count) {
    return reinterpret_cast<T*>(bytes_of(number, count, sizeof(T)));
  }

  // Calls work(Worker) on every thread at once and waits; `scratch` of the workers is null.
  template <class Work>
  void run(const Work& work) {
    struct Context {
      const Work& work;
      Index count;
    } context{work, pool_.threads()};
    pool_.run(
        [](void* pointer, int worker) {
          const Context& it = *static_cast<const Context*>(pointer);
          it.work(Worker{worker, it.count, nullptr});
        },
        &context);
  }

  std::uint64_t held_bytes() const;
  // The most that was ever held at once.
  std::uint64_t peak_bytes() const { return peak_bytes_; }
  void release();

 private:
  struct Free {
    void operator()(std::byte* pointer) const;
  };
  struct Block {
    std::unique_ptr<std::byte, Free> data;
    std::uint64_t bytes = 0;
  };

  std::byte* bytes_of(std::size_t number, std::uint64_t count, std::size_t size);

  const Kernels& kernels_;
  ThreadPool pool_;
  std::array<Block, kBlocks> blocks_;
  std::uint64_t peak_bytes_ = 0;
};

}  // namespace edge
