// What a kernel knows about the thread it runs on.
#pragma once

#include <cstdint>

namespace edge {

using Index = std::int64_t;

// Every kernel is called once per worker, at the same time, and writes its own share of the output.
// Each element of an output is computed by one worker, in an order that does not depend on `count`,
// so results are bit-identical for any number of threads.
struct Worker {
  Index index = 0;  // 0 <= index < count
  Index count = 1;
  float* scratch = nullptr;  // this worker's own, 64-byte aligned; contents are left over
  float* shared = nullptr;   // worker 0's scratch, for kernels of several phases
  Index phase = 0;           // every worker ends a phase before any begins the next
};

}  // namespace edge
