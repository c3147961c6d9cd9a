// A pool that runs one function on all its workers at once and waits for them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "core/placement.h"

namespace edge {

// Worker 0 is the calling thread; `threads` - 1 more are started (none for 1) and live as long as
// the pool. run() allocates nothing. It is not reentrant and has one caller at a time.
class ThreadPool {
 public:
  using Work = void (*)(void* context, int worker);

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(others_.size()) + 1; }
  void run(Work work, void* context);

 private:
  void serve(int worker);
  void stop();

  Placement placement_;
  const int spins_;
  std::mutex mutex_;
  std::condition_variable started_;
  std::condition_variable finished_;
  std::vector<std::thread> others_;
  std::atomic<unsigned> generation_{0};  // grows by one a run; workers wait for it to move
  std::atomic<int> running_{0};
  bool stopping_ = false;
  Work work_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace edge
