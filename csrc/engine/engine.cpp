#include "engine/engine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

#include "core/cpu.h"

namespace edge {

namespace {

constexpr std::uint64_t kAlignment = 64;
// Below this many multiply-adds or elements, waking threads costs more than they save.
constexpr double kWorkWorthThreads = 32768.0;

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

int checked_threads(int threads) {
  if (threads < 1 || threads > 256) {
    throw std::invalid_argument("threads must be in 1..256, is " + std::to_string(threads));
  }
  return threads;
}

std::uint64_t total_bytes(const Plan& plan, int threads) {
  // Plan caps (4 GiB each) times 256 threads stay far below 2^64.
  return aligned(plan.arena_bytes) + aligned(plan.constants_bytes) +
         static_cast<std::uint64_t>(checked_threads(threads)) * aligned(plan.workspace_bytes);
}

struct StepWork {
  const Call* call;
  std::uint8_t* scratch;
  std::uint64_t scratch_step;
  int workers;
  Index phase;
};

void run_worker(void* context, int worker) {
  const auto& work = *static_cast<const StepWork*>(context);
  work.call->run({worker, work.workers,
                  reinterpret_cast<float*>(work.scratch +
                                           static_cast<std::uint64_t>(worker) * work.scratch_step),
                  reinterpret_cast<float*>(work.scratch), work.phase});
}

}  // namespace

Block::Block(std::uint64_t bytes) {
  const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const std::uint64_t pages = (bytes + page - 1) / page * page;
  if (pages > SIZE_MAX / 2) throw std::bad_alloc();
  mapped_bytes_ = static_cast<std::size_t>(pages + page);
  void* mapped =
      mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  mapped_ = static_cast<std::uint8_t*>(mapped);
  if (mprotect(mapped_ + pages, static_cast<std::size_t>(page), PROT_NONE) != 0) {
    munmap(mapped_, mapped_bytes_);
    throw std::bad_alloc();
  }
  data_ = mapped_ + (pages - aligned(bytes));
}

Block::~Block() { munmap(mapped_, mapped_bytes_); }

Engine::Engine(Span<const std::uint8_t> plan_bytes, int threads, const std::string& isa)
    : plan_(parse_plan(plan_bytes)),
      kernels_(choose_kernels(isa)),
      constants_at_(aligned(plan_.arena_bytes)),
      scratch_at_(constants_at_ + aligned(plan_.constants_bytes)),
      scratch_step_(aligned(plan_.workspace_bytes)),
      block_(total_bytes(plan_, threads)),
      pool_(threads) {
  if (plan_.constants_bytes > 0) {
    std::memcpy(block_.data() + constants_at_, plan_bytes.data() + plan_.constants_begin,
                static_cast<std::size_t>(plan_.constants_bytes));
  }
  for (const Tensor& tensor : plan_.tensors) {
    if (tensor.role != Role::temporary && !tensor.name.empty())
      by_name_.emplace(tensor.name, &tensor);
  }
  calls_.reserve(plan_.ops.size());
  // A call holds all it needs: the memory of what was read of an operation serves the next calls.
  for (Op& op : plan_.ops) {
    bind(op);
    op = Op{};
  }
  std::vector<Op>().swap(plan_.ops);
}

void Engine::bind(const Op& op) {
  const auto operand = [this](std::uint32_t number) {
    if (number == kAbsent) return Operand{};
    const Tensor& tensor = plan_.tensors[number];
    return Operand{&tensor, data(tensor)};
  };
  Operands operands;
  std::transform(op.inputs.begin(), op.inputs.end(), operands.in, operand);
  std::transform(op.outputs.begin(), op.outputs.end(), operands.out, operand);
  operands.n_inputs = op.inputs.size();
  operands.n_outputs = op.outputs.size();
  operands.attributes = {op.attributes.data(), op.attributes.size()};
  const auto code = static_cast<Opcode>(op.code);
  calls_.push_back(prepare(code, operands, kernels_));
  if (code == Opcode::softmax_xent || code == Opcode::softmax_xent_grad) {
    label_checks_.push_back({operands.in[1].tensor, operands.in[0].tensor->dims[1], false});
  } else if (code == Opcode::sampled_softmax) {
    label_checks_.push_back({operands.in[1].tensor, operands.in[2].tensor->dims[0], false});
  }
  // Indices that a step makes itself cannot be checked before it: the kernel skips those out of
  // range.
  if (code == Opcode::gather || code == Opcode::scatter_add) {
    const Tensor *index = operands.in[1].tensor,
                 *indexed = (code == Opcode::gather ? operands.in[0] : operands.out[0]).tensor;
    if (index->role == Role::batch || index->role == Role::frozen || index->role == Role::constant)
      label_checks_.push_back(
          {index, indexed->dims[static_cast<std::size_t>(op.attributes[0])], true});
  }
}

std::uint8_t* Engine::data(const Tensor& tensor) const {
  return block_.data() + (tensor.role == Role::constant ? constants_at_ : 0) + tensor.offset;
}

std::uint8_t* Engine::scratch(int worker) const {
  return block_.data() + scratch_at_ + static_cast<std::uint64_t>(worker) * scratch_step_;
}

const Tensor* Engine::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

std::optional<LabelOutOfRange> Engine::step() {
  for (const LabelCheck& check : label_checks_) {
    const auto* labels = reinterpret_cast<const std::int32_t*>(data(*check.labels));
    for (std::uint64_t row = 0; row < check.labels->elements; ++row) {
      const std::int32_t label = labels[row];
      if (label >= -1 && label < check.classes) continue;
      return LabelOutOfRange{check.labels->name.c_str(), static_cast<std::int64_t>(row), label,
                             check.classes, check.index};
    }
  }
  for (const Call& call : calls_) run(call);
  return std::nullopt;
}

void Engine::run(const Call& call) {
  const bool threads = pool_.threads() > 1 && call.work >= kWorkWorthThreads;
  StepWork work{&call, scratch(0), scratch_step_, threads ? pool_.threads() : 1, 0};
  for (; work.phase < call.phases; ++work.phase) {
    if (threads) {
      pool_.run(run_worker, &work);
    } else {
      run_worker(&work, 0);
    }
  }
}

std::vector<double> Engine::timings(int steps) {
  std::vector<double> times_s;
  times_s.reserve(static_cast<std::size_t>(steps) * calls_.size());
  for (int step = 0; step < steps; ++step) {
    for (const Call& call : calls_) {
      const auto begin = std::chrono::steady_clock::now();
      run(call);
      times_s.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
  }
  return times_s;
}

std::vector<Engine::Range> Engine::passing() const {
  std::vector<const Tensor*> slots;
  for (const Tensor& tensor : plan_.tensors) {
    if (tensor.role != Role::temporary && tensor.role != Role::constant) slots.push_back(&tensor);
  }
  std::sort(slots.begin(), slots.end(),
            [](const Tensor* a, const Tensor* b) { return a->offset < b->offset; });
  std::vector<Range> ranges;
  std::uint64_t at = 0;
  for (const Tensor* slot : slots) {
    ranges.push_back({block_.data() + at, slot->offset - at});
    at = slot->offset + slot->bytes;
  }
  ranges.push_back({block_.data() + at, plan_.arena_bytes - at});
  ranges.push_back({scratch(0), scratch_step_ * static_cast<std::uint64_t>(pool_.threads())});
  return ranges;
}

void Engine::poison() {
  for (const Range& range : passing())
    std::memset(range.data, 0xFF, static_cast<std::size_t>(range.bytes));
}

void Engine::release() {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  for (const Range& range : passing()) {
    const auto begin = reinterpret_cast<std::uintptr_t>(range.data);
    const std::uintptr_t first = (begin + page - 1) / page * page,
                         last = (begin + static_cast<std::uintptr_t>(range.bytes)) / page * page;
    // Advice: where it is refused, the pages stay, and nothing else changes.
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }
}

}  // namespace edge
