// The plan file (docs/plan-format.md): a strict reader of bytes nobody vouches for.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/checks.h"

namespace edge {

enum class Dtype : std::uint8_t { float32 = 1, int32 = 2, uint8 = 3 };
enum class Role : std::uint8_t {
  temporary,
  trained,
  frozen,
  state,
  batch,
  scalar,
  output,
  constant
};

struct Tensor {
  std::string name;
  Dtype dtype = Dtype::float32;
  Role role = Role::temporary;
  std::uint64_t offset = 0;  // into the arena, or into the constants
  std::vector<std::int64_t> dims;
  std::uint64_t elements = 1, bytes = 0;
};

constexpr std::uint32_t kAbsent = 0xFFFFFFFFU;

struct Op {
  std::uint16_t code = 0;
  std::vector<std::uint32_t> inputs,
      outputs;  // tensor numbers, kAbsent for an absent optional operand
  std::vector<std::int32_t> attributes;
};

struct Plan {
  std::vector<Tensor> tensors;
  std::vector<Op> ops;
  std::uint64_t arena_bytes = 0, constants_bytes = 0, workspace_bytes = 0;
  std::uint64_t constants_begin = 0;  // in the file
};

// Reads and checks everything but the SHA-256, which the caller compares (edge_runtime/plan.py).
// Throws PlanError; allocates in proportion to the file, never to a number that the file merely
// states.
Plan parse_plan(Span<const std::uint8_t> bytes);

const char* dtype_name(Dtype dtype);
std::uint64_t dtype_bytes(Dtype dtype);

}  // namespace edge
