// Runs a plan: one block of memory, one list of calls, nothing allocated after construction.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/threads.h"
#include "engine/ops.h"
#include "engine/plan.h"

namespace edge {

// A label that is no class, or an index that names no row: the step did nothing.
struct LabelOutOfRange {
  const char* tensor;  // its name; lives as long as the engine
  std::int64_t row;
  std::int64_t label;
  std::int64_t classes;
  bool index;
};

// Anonymous zero pages: 64-byte aligned, and pages that are never touched cost no memory. A page
// without access stands right behind the last byte: a kernel that ran over would crash, not write.
class Block {
 public:
  explicit Block(std::uint64_t bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t* mapped_ = nullptr;
  std::uint8_t* data_ = nullptr;
  std::size_t mapped_bytes_ = 0;
};

class Engine {
 public:
  // Arena, constants and threads * workspace in one zeroed block. Throws PlanError,
  // std::invalid_argument for threads outside 1..256 or an unknown instruction set, std::bad_alloc.
  Engine(Span<const std::uint8_t> plan_bytes, int threads, const std::string& isa);

  // One pass over the plan. Not to be called from two threads at once. Nothing is written where a
  // label is refused.
  std::optional<LabelOutOfRange> step();

  // Seconds that each operation takes, (steps, operations) row by row, over `steps` >= 1 steps.
  // They train as step() does but do not refuse labels (the kernels ignore wrong ones). Allocates.
  std::vector<double> timings(int steps);

  // Null for an unknown name.
  const Tensor* find(const std::string& name) const;
  std::uint8_t* data(const Tensor& tensor) const;

  // Fills everything that does not outlive a step with NaN (bytes 0xFF): temporaries and scratch.
  // For tests.
  void poison();

  // Gives the system the pages back that hold nothing else than temporaries and scratch; a later
  // step takes new ones. Not to be called during a step.
  void release();

  // Without its operations, which calls have taken the place of.
  const Plan& plan() const { return plan_; }
  std::size_t operations() const { return calls_.size(); }
  int threads() const { return pool_.threads(); }
  const char* isa() const { return kernels_.isa; }

 private:
  struct LabelCheck {
    const Tensor* labels;
    std::int64_t classes;
    bool index;
  };

  struct Range {
    std::uint8_t* data;
    std::uint64_t bytes;
  };

  // What does not outlive a step: the arena between the tensors that do, and the scratch.
  std::vector<Range> passing() const;
  void bind(const Op& op);
  void run(const Call& call);
  std::uint8_t* scratch(int worker) const;

  Plan plan_;
  const Kernels& kernels_;
  std::uint64_t constants_at_ = 0, scratch_at_ = 0, scratch_step_ = 0;
  Block block_;
  std::vector<Call> calls_;
  std::vector<LabelCheck> label_checks_;
  std::unordered_map<std::string, const Tensor*> by_name_;
  ThreadPool pool_;
};

}  // namespace edge
