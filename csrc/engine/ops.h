// The operations a plan may hold: their operands, the checks of one use, and the kernel call it
// becomes.
#pragma once

#include <cstdint>
#include <functional>

#include "core/checks.h"
#include "engine/op_list.h"
#include "engine/plan.h"
#include "kernels/kernels.h"

namespace edge {

enum class Opcode : std::uint16_t {
#define EDGE_NUMBER(code, name, ...) name = code,
  EDGE_OPS(EDGE_NUMBER)
#undef EDGE_NUMBER
};

constexpr std::size_t kMaxInputs = 16, kMaxOutputs = 8;
constexpr int kAnyNumber = -1, kWindow = 10;  // of attributes
constexpr unsigned kAnyInput = ~0U;

// A tensor as a kernel sees it; `data` is null while a plan is only being checked.
struct Operand {
  const Tensor* tensor = nullptr;  // null: absent
  std::uint8_t* data = nullptr;
};

struct Operands {
  Operand in[kMaxInputs], out[kMaxOutputs];
  std::size_t n_inputs = 0, n_outputs = 0;  // absent ones counted
  Span<const std::int32_t> attributes;
};

// One operation, ready to run: run(worker) on every worker, each with `scratch_bytes` of its own,
// for phase 0, then on all of them for phase 1, and so on.
struct Call {
  std::function<void(const Worker&)> run;
  std::uint64_t scratch_bytes = 0;
  double work = 0.0;  // multiply-adds or elements, to decide whether threads are worth waking
  Index phases = 1;
};

struct OpInfo {
  std::uint16_t code;
  const char* name;
  Call (*prepare)(const Operands& operands, const Kernels& kernels);
  std::size_t n_inputs, n_outputs;
  unsigned optional_inputs, optional_outputs;  // bit masks
  int n_attributes;                            // kAnyNumber: prepare counts them
  unsigned may_alias;                          // inputs that an output may be exactly, a bit mask
  bool any_count;  // of operands, up to the numbers above, none of them absent
};

// Throws PlanError (BadOpcode).
const OpInfo& op_info(std::uint16_t code);

// In the order of their numbers.
Span<const OpInfo> all_ops();

// Checks shapes, dtypes and attributes (PlanError) and builds the call.
Call prepare(Opcode code, const Operands& operands, const Kernels& kernels);

// Checks operation `number` of a plan: operands, roles, overlap, everything prepare() checks, and
// scratch.
void check_op(const Plan& plan, std::size_t number);

}  // namespace edge
