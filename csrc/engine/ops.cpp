#include "engine/ops.h"

#include "core/cpu.h"
#include "engine/prepare.h"

namespace edge {

namespace {

constexpr OpInfo kOps[] = {
#define EDGE_ROW(code, name, ...) {code, #name, prepare_##name, __VA_ARGS__},
    EDGE_OPS(EDGE_ROW)
#undef EDGE_ROW
};

bool overlap(const Tensor& a, const Tensor& b) {
  if ((a.role == Role::constant) != (b.role == Role::constant)) return false;
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

void check_count(std::size_t found, std::size_t wanted, bool any_count, const char* what) {
  require(found == wanted || (any_count && found >= 1 && found < wanted), "BadOperand",
          std::string("takes ") + (any_count ? "1 to " : "") + std::to_string(wanted) + " " + what +
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
  check_count(op.inputs.size(), info.n_inputs, info.any_count, "inputs");
  check_count(op.outputs.size(), info.n_outputs, info.any_count, "outputs");
  Operands operands;
  bind_side(plan, op.inputs, info.optional_inputs, operands.in);
  bind_side(plan, op.outputs, info.optional_outputs, operands.out);
  operands.n_inputs = op.inputs.size();
  operands.n_outputs = op.outputs.size();
  operands.attributes = {op.attributes.data(), op.attributes.size()};
  check_writes(info, operands);
  const Call call = prepare(static_cast<Opcode>(op.code), operands, *available_kernels().front());
  require(call.scratch_bytes <= plan.workspace_bytes, "WorkspaceTooSmall",
          "needs " + std::to_string(call.scratch_bytes) + " bytes of scratch, the plan has " +
              std::to_string(plan.workspace_bytes));
}

}  // namespace

const OpInfo& op_info(std::uint16_t code) {
  for (const OpInfo& info : kOps) {
    if (info.code == code) return info;
  }
  refuse("BadOpcode", "opcode " + std::to_string(code) + " is none of this engine's");
}

Span<const OpInfo> all_ops() { return {kOps, sizeof kOps / sizeof kOps[0]}; }

Call prepare(Opcode code, const Operands& operands, const Kernels& kernels) {
  const OpInfo& info = op_info(static_cast<std::uint16_t>(code));
  require(info.n_attributes == kAnyNumber ||
              operands.attributes.size() == static_cast<std::size_t>(info.n_attributes),
          "BadAttribute",
          "takes " + std::to_string(info.n_attributes) + " attributes, got " +
              std::to_string(operands.attributes.size()));
  return info.prepare(operands, kernels);
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
