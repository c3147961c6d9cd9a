#include "engine/ops.h"

#include "core/cpu.h"

namespace edge {

namespace {

constexpr int kWindow = 10, kMaxAxes = kAnyNumber;
constexpr unsigned kAnyInput = ~0U;

// In the order of the opcodes, from 1.
constexpr OpInfo kOps[] = {
    {"gemm", 3, 1, 0b100, 0, 3, 0},
    {"conv", 3, 1, 0b100, 0, kWindow, 0},
    {"conv_grad_x", 2, 1, 0, 0, kWindow, 0},
    {"conv_grad_w", 2, 1, 0, 0, kWindow, 0},
    {"relu", 1, 1, 0, 0, 0, kAnyInput},
    {"relu_grad", 2, 1, 0, 0, 0, kAnyInput},
    {"maxpool", 1, 2, 0, 0, kWindow, 0},
    {"maxpool_grad", 2, 1, 0, 0, kWindow, 0},
    {"avgpool", 1, 1, 0, 0, kWindow + 1, 0},
    {"avgpool_grad", 1, 1, 0, 0, kWindow + 1, 0},
    {"add", 2, 1, 0, 0, 0, kAnyInput},
    {"sub", 2, 1, 0, 0, 0, kAnyInput},
    {"mul", 2, 1, 0, 0, 0, kAnyInput},
    {"reduce_sum", 1, 1, 0, 0, 2, 0},
    {"transpose", 1, 1, 0, 0, kMaxAxes, 0},
    {"softmax_xent", 2, 2, 0, 0, 0, 0},
    {"softmax_xent_grad", 3, 1, 0, 0, 0, 0},
    {"sgd", 4, 2, 0b1000, 0b10, 3, kAnyInput},
    {"copy", 1, 1, 0, 0, 0, kAnyInput},
    {"unary", 1, 1, 0, 0, 1, kAnyInput},
    {"binary", 2, 1, 0, 0, 1, kAnyInput},
    {"where", 3, 1, 0, 0, 0, kAnyInput},
    {"minmax", 1, 1, 0, 0, 2, 0},
    {"argminmax", 1, 1, 0, 0, 2, 0},
    {"strided_copy", 2, 1, 0b10, 0, kAnyNumber, 0b10},
    {"gather", 2, 1, 0, 0, 2, 0},
    {"scatter_add", 2, 1, 0, 0, 2, 0},
    {"cast", 1, 1, 0, 0, 0, 0},
    {"matmul", 2, 1, 0, 0, 2, 0},
    {"cumsum", 1, 1, 0, 0, 3, 0},
    {"topk", 1, 2, 0, 0, 3, 0},
    {"adamw", 6, 3, 0, 0, 4, kAnyInput},
    {"blend", 2, 1, 0, 0, 1, kAnyInput},
};
constexpr std::size_t kOpCount = sizeof kOps / sizeof kOps[0];

bool overlap(const Tensor& a, const Tensor& b) {
  if ((a.role == Role::constant) != (b.role == Role::constant)) return false;
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

void check_count(std::size_t found, std::size_t wanted, const char* what) {
  require(found == wanted, "BadOperand",
          "takes " + std::to_string(wanted) + " " + what +
              " (absent ones written as 0xFFFFFFFF), got " + std::to_string(found));
}

void bind_side(const Plan& plan, const std::vector<std::uint32_t>& numbers, unsigned optional,
               Operand* operands) {
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (numbers[i] != kAbsent) {
      operands[i].tensor = &plan.tensors[numbers[i]];
      continue;
    }
    require((optional >> i & 1U) != 0, "BadOperand",
            "operand " + std::to_string(i) + " must not be absent");
  }
}

void check_writes(const OpInfo& info, const Operands& operands) {
  for (std::size_t o = 0; o < kMaxOutputs; ++o) {
    const Tensor* out = operands.out[o].tensor;
    if (out == nullptr) continue;
    const bool writable = out->role == Role::temporary || out->role == Role::trained ||
                          out->role == Role::state || out->role == Role::output;
    require(writable, "WritesReadOnly",
            "writes '" + out->name + "' of role " + std::to_string(static_cast<int>(out->role)) +
                ", which is read-only");
    for (std::size_t i = 0; i < kMaxInputs; ++i) {
      const Tensor* in = operands.in[i].tensor;
      if (in == nullptr || !overlap(*in, *out)) continue;
      const bool same = in->offset == out->offset && in->bytes == out->bytes;
      require((info.may_alias >> i & 1U) != 0 && same, "Overlap",
              "an output shares bytes with an input");
    }
    for (std::size_t other = 0; other < o; ++other) {
      const Tensor* earlier = operands.out[other].tensor;
      require(earlier == nullptr || !overlap(*earlier, *out), "Overlap", "two outputs share bytes");
    }
  }
}

void check_bound(const Plan& plan, const Op& op, const OpInfo& info) {
  check_count(op.inputs.size(), info.n_inputs, "inputs");
  check_count(op.outputs.size(), info.n_outputs, "outputs");
  Operands operands;
  bind_side(plan, op.inputs, info.optional_inputs, operands.in);
  bind_side(plan, op.outputs, info.optional_outputs, operands.out);
  operands.attributes = {op.attributes.data(), op.attributes.size()};
  check_writes(info, operands);
  const Call call = prepare(static_cast<Opcode>(op.code), operands, *available_kernels().front());
  require(call.scratch_bytes <= plan.workspace_bytes, "WorkspaceTooSmall",
          "needs " + std::to_string(call.scratch_bytes) + " bytes of scratch, the plan has " +
              std::to_string(plan.workspace_bytes));
}

}  // namespace

const OpInfo& op_info(std::uint16_t code) {
  require(code >= 1 && code <= kOpCount, "BadOpcode",
          "opcode " + std::to_string(code) + " is not in 1.." + std::to_string(kOpCount));
  return kOps[code - 1];
}

void check_op(const Plan& plan, std::size_t number) {
  const Op& op = plan.ops[number];
  std::string who = "operation " + std::to_string(number);
  try {
    const OpInfo& info = op_info(op.code);
    who += std::string(" (") + info.name + ")";
    check_bound(plan, op, info);
  } catch (const PlanError& error) {
    throw PlanError(error.rule(), who + ": " + error.what());
  }
}

}  // namespace edge
