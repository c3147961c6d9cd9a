// The pool: every worker does its piece of every run, and threads that share a processor are
// parted.
#include <array>
#include <atomic>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include "check.h"
#include "core/threads.h"

namespace {

void every_worker_works_once_a_run() {
  for (int threads = 1; threads <= 4; ++threads) {
    edge::ThreadPool pool(threads);
    std::array<std::atomic<int>, 4> calls{};
    const auto count = [](void* context, int worker) {
      ++(*static_cast<std::array<std::atomic<int>, 4>*>(context))[static_cast<std::size_t>(worker)];
    };
    for (int run = 0; run < 1000; ++run) pool.run(count, &calls);
    for (int worker = 0; worker < 4; ++worker) {
      CHECK(calls[static_cast<std::size_t>(worker)] == (worker < threads ? 1000 : 0));
    }
  }
}

#if defined(__linux__)

struct Seen {
  int caller = -1;
  int other = -1;
  bool crowd = false;  // the other goes where the caller is
};

void stay_on(int cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(static_cast<std::size_t>(cpu), &only);
  CHECK(pthread_setaffinity_np(pthread_self(), sizeof only, &only) == 0);
}

void look(void* context, int worker) {
  Seen& seen = *static_cast<Seen*>(context);
  if (worker == 0) return;
  if (seen.crowd) stay_on(seen.caller);
  seen.other = sched_getcpu();
}

void threads_that_share_a_processor_are_parted() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  if (CPU_COUNT(&allowed) < 2) {
    std::puts("skipped: threads can be parted on two processors or more");
    return;
  }
  edge::ThreadPool pool(2);
  stay_on(sched_getcpu());
  Seen seen;
  seen.caller = sched_getcpu();
  seen.crowd = true;
  pool.run(look, &seen);
  CHECK(seen.other == seen.caller);
  seen.crowd = false;
  for (int run = 0; run < 10; ++run) {
    pool.run(look, &seen);
    CHECK(seen.other != seen.caller);
  }
  CHECK(pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed) == 0);
}

#else

void threads_that_share_a_processor_are_parted() {}

#endif

}  // namespace

int main() {
  every_worker_works_once_a_run();
  threads_that_share_a_processor_are_parted();
  return check::finish();
}
