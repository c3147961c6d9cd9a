#include "core/threads.h"

namespace edge {

namespace {

// Operations of a small network last some 10 us, and waking a sleeping thread costs about as much,
// so a worker looks this often before it goes to sleep. Larger values burn a board's shared cores,
// and where threads share a processor every look keeps away the one that is looked for.
constexpr int kSpins = 4000;

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : placement_(threads > 1 ? threads - 1 : 0), spins_(placement_.enough() ? kSpins : 0) {
  try {
    others_.reserve(static_cast<std::size_t>(threads > 1 ? threads - 1 : 0));
    for (int worker = 1; worker < threads; ++worker) {
      others_.emplace_back([this, worker] { serve(worker); });
    }
  } catch (...) {
    stop();  // a thread that was started must be joined before its std::thread dies
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  started_.notify_all();
  for (std::thread& other : others_) other.join();
  others_.clear();
}

void ThreadPool::run(Work work, void* context) {
  if (others_.empty()) {
    work(context, 0);
    return;
  }
  placement_.spread(others_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    work_ = work;
    context_ = context;
    running_.store(static_cast<int>(others_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  started_.notify_all();
  work(context, 0);
  for (int spin = 0; spin < spins_; ++spin) {
    if (running_.load(std::memory_order_acquire) == 0) return;
    pause_briefly();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  finished_.wait(lock, [this] { return running_.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::serve(int worker) {
  unsigned seen = 0;
  while (true) {
    for (int spin = 0; spin < spins_; ++spin) {
      if (generation_.load(std::memory_order_acquire) != seen) break;
      pause_briefly();
    }
    Work work = nullptr;
    void* context = nullptr;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      started_.wait(lock, [this, seen] { return generation_.load() != seen; });
      if (stopping_) return;
      seen = generation_.load();
      work = work_;
      context = context_;
    }
    work(context, worker);
    placement_.note(worker);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      // Taking the mutex orders this after the caller's check, so that the wake-up is not lost.
      const std::lock_guard<std::mutex> lock(mutex_);
      finished_.notify_one();
    }
  }
}

}  // namespace edge
