// Keeps the threads of a pool on different processors.
//
// A thread that wakes another is often given it on its own processor, and the kernel takes until
// its next tick, some 10 ms, to move one of them away; meanwhile each waits for the other's time
// slice (measured on 2 cores: a decomposition of 100 short phases took 10 ms in place of 0.8). So a
// pool looks where its threads ran last, and forbids a processor to those that are found on one
// that is taken. Outside Linux nothing is known and nothing is forbidden.
#pragma once

#include <memory>
#include <thread>
#include <vector>

namespace edge {

class Placement {
 public:
  // For a caller and `others` more threads, on the processors that the calling thread may use now.
  explicit Placement(int others);
  ~Placement();
  Placement(const Placement&) = delete;
  Placement& operator=(const Placement&) = delete;

  // Whether each thread can have a processor of its own.
  bool enough() const;
  // Called by thread `worker`, 1 .. others, when it is done with its piece: remembers where that
  // was.
  void note(int worker);
  // Called by the caller before it wakes the others: moves those that would share. One look at the
  // caller's processor where nothing is to be moved, a system call for each thread that is.
  void spread(std::vector<std::thread>& others);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace edge
