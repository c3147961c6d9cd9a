#include "core/workspace.h"

#include <cstdlib>
#include <new>
#include <stdexcept>

namespace edge {

namespace {

constexpr std::uint64_t kAlignment = 64;

int checked_threads(int threads) {
  if (threads < 1 || threads > Workspace::kMaxThreads) {
    throw std::invalid_argument("threads must be in 1..256, got " + std::to_string(threads));
  }
  return threads;
}

}  // namespace

Workspace::Workspace(int threads, const std::string& isa)
    : kernels_(choose_kernels(isa)), pool_(checked_threads(threads)) {}

void Workspace::Free::operator()(std::byte* pointer) const { std::free(pointer); }

std::byte* Workspace::bytes_of(std::size_t number, std::uint64_t count, std::size_t size) {
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(count, size, &bytes) ||
      __builtin_add_overflow(bytes, kAlignment - 1, &bytes) || bytes > SIZE_MAX / 2) {
    throw std::bad_alloc();
  }
  bytes &= ~(kAlignment - 1);
  Block& block = blocks_.at(number);
  if (bytes <= block.bytes && block.data != nullptr) return block.data.get();
  block.data.reset();  // first, so that old and new are never both held
  block.bytes = 0;
  void* fresh = nullptr;
  if (posix_memalign(&fresh, kAlignment,
                     static_cast<std::size_t>(bytes == 0 ? kAlignment : bytes)) != 0) {
    throw std::bad_alloc();
  }
  block.data.reset(static_cast<std::byte*>(fresh));
  block.bytes = bytes;
  const std::uint64_t held = held_bytes();
  if (held > peak_bytes_) peak_bytes_ = held;
  return block.data.get();
}

std::uint64_t Workspace::held_bytes() const {
  std::uint64_t sum = 0;
  for (const Block& block : blocks_) sum += block.bytes;
  return sum;
}

void Workspace::release() {
  for (Block& block : blocks_) block = Block{};
}

}  // namespace edge
