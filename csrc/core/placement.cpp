#include "core/placement.h"

#include <atomic>
#include <cstddef>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace edge {

#if defined(__linux__)

// cpu_set_t counts to CPU_SETSIZE = 1024; a machine of more answers with an error and is left
// alone.
struct Placement::State {
  explicit State(int others) : ran_on(static_cast<std::size_t>(others)) {
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) CPU_ZERO(&allowed);
    for (std::atomic<int>& cpu : ran_on) cpu.store(-1, std::memory_order_relaxed);
  }

  cpu_set_t allowed;
  std::vector<std::atomic<int>> ran_on;  // -1: not known
};

bool Placement::enough() const {
  return CPU_COUNT(&state_->allowed) > static_cast<int>(state_->ran_on.size());
}

void Placement::note(int worker) {
  state_->ran_on[static_cast<std::size_t>(worker - 1)].store(sched_getcpu(),
                                                             std::memory_order_relaxed);
}

void Placement::spread(std::vector<std::thread>& others) {
  const int here = sched_getcpu();
  if (here < 0 || here >= CPU_SETSIZE || !enough()) return;
  cpu_set_t taken;
  CPU_ZERO(&taken);
  CPU_SET(static_cast<std::size_t>(here), &taken);
  for (std::size_t other = 0; other < others.size(); ++other) {
    const int cpu = state_->ran_on[other].load(std::memory_order_relaxed);
    if (cpu < 0 || cpu >= CPU_SETSIZE) continue;
    if (!CPU_ISSET(static_cast<std::size_t>(cpu), &taken)) {
      CPU_SET(static_cast<std::size_t>(cpu), &taken);
      continue;
    }
    cpu_set_t free;
    CPU_XOR(&free, &state_->allowed, &taken);
    CPU_AND(&free, &free, &state_->allowed);
    // Refused where the system has taken processors away since: the thread then stays where it is.
    pthread_setaffinity_np(others[other].native_handle(), sizeof free, &free);
    state_->ran_on[other].store(-1, std::memory_order_relaxed);
  }
}

#else

struct Placement::State {};

bool Placement::enough() const { return true; }
void Placement::note(int) {}
void Placement::spread(std::vector<std::thread>&) {}

#endif

Placement::Placement(int others)
#if defined(__linux__)
    : state_(std::make_unique<State>(others))
#endif
{
  static_cast<void>(others);
}

Placement::~Placement() = default;

}  // namespace edge
