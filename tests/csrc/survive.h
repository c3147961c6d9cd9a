// What every fuzzer of plans does: break a plan, and run what the reader lets through.
//
// It runs twice over: whole, in an engine, and operation by operation with every operand and the
// scratch in an allocation of exactly its size, where AddressSanitizer sees one byte too many, with
// one worker and with three, which must agree bit by bit.
#pragma once

#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "engine/engine.h"
#include "engine/ops.h"
#include "plan_builder.h"

namespace fuzz {

using build::Bytes;
using edge::Dtype;
using edge::Role;

// Beyond these a plan is good or bad for other reasons than its size, and would only take long.
constexpr std::uint64_t kMostBytes = 8 << 20;
constexpr double kMostWork = 4e6;

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t bits() { return engine_(); }
  std::uint32_t below(std::uint64_t n) { return static_cast<std::uint32_t>(bits() % n); }
  bool once_in(std::uint64_t n) { return below(n) == 0; }
  template <class T, std::size_t N>
  T of(const T (&values)[N]) {
    return values[below(N)];
  }
  std::uint32_t size() { return of({1U, 1U, 2U, 3U, 4U, 5U, 7U, 8U, 9U, 13U, 16U, 17U, 32U, 33U}); }
  float unit() { return static_cast<float>(below(1 << 24)) / 8388608.0F - 1.0F; }

 private:
  std::mt19937_64 engine_;
};

inline Bytes changed(Bytes plan, Random& random) {
  constexpr std::uint32_t kWords[] = {0,          1,      2,       3,          5,
                                      16,         0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
                                      0xFFFFFFFF, 64,     4096,    0x40000000, 0xFFFFFFC0};
  for (std::uint32_t change = 0; change < 1 + random.below(4); ++change) {
    const std::size_t word = random.below(plan.size() / 4) * std::size_t{4};
    const std::size_t other = random.below(plan.size() / 4) * std::size_t{4};
    const std::uint32_t value = random.of(kWords);
    switch (random.below(4)) {
      case 0:
        plan[word + random.below(4)] ^= static_cast<std::uint8_t>(1U << random.below(8));
        break;
      case 1:
        plan[word + random.below(4)] = static_cast<std::uint8_t>(random.below(256));
        break;
      case 2:
        std::memcpy(plan.data() + word, &value, 4);
        break;
      default:
        std::memcpy(plan.data() + word, plan.data() + other, 4);
    }
  }
  return plan;
}

// The operands of one operation, each in an allocation of its own; the same bytes of the plan are
// the same bytes here.
class Apart {
 public:
  Apart(const edge::Plan& plan, const edge::Op& op, std::uint64_t seed) : random_(seed) {
    bind(plan, op.inputs, operands_.in);
    bind(plan, op.outputs, operands_.out);
    operands_.attributes = {op.attributes.data(), op.attributes.size()};
  }

  // All bytes of the outputs after a run on `count` workers.
  Bytes run(edge::Opcode code, const edge::Kernels& kernels, std::int64_t count) {
    const edge::Call call = edge::prepare(code, operands_, kernels);
    const auto floats = static_cast<std::size_t>(call.scratch_bytes / 4);
    std::vector<std::unique_ptr<float[]>> scratch;
    for (std::int64_t worker = 0; worker < count; ++worker) {
      scratch.emplace_back(new float[floats]);
      std::memset(scratch.back().get(), 0xFF, floats * 4);
    }
    for (std::int64_t phase = 0; phase < call.phases; ++phase) {
      for (std::int64_t worker = 0; worker < count; ++worker)
        call.run({worker, count, scratch[static_cast<std::size_t>(worker)].get(), scratch[0].get(),
                  phase});
    }
    Bytes all;
    for (const edge::Operand& out : operands_.out) {
      if (out.tensor != nullptr) all.insert(all.end(), out.data, out.data + out.tensor->bytes);
    }
    return all;
  }

 private:
  void bind(const edge::Plan& plan, const std::vector<std::uint32_t>& numbers, edge::Operand* to) {
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      if (numbers[i] == edge::kAbsent) continue;
      const edge::Tensor& tensor = plan.tensors[numbers[i]];
      auto& memory =
          memory_[{std::uint64_t{tensor.role == Role::constant}, tensor.offset, tensor.bytes}];
      if (memory == nullptr) memory = filled(tensor);
      to[i] = {&tensor, memory.get()};
    }
  }

  std::unique_ptr<std::uint8_t[]> filled(const edge::Tensor& tensor) {
    std::unique_ptr<std::uint8_t[]> memory(
        new std::uint8_t[static_cast<std::size_t>(tensor.bytes)]);
    for (std::uint64_t i = 0; i < tensor.elements; ++i) {
      const float value = random_.unit();
      const auto number = static_cast<std::int32_t>(random_.below(12)) - 2;
      std::uint8_t* to = memory.get() + i * edge::dtype_bytes(tensor.dtype);
      if (tensor.dtype == Dtype::float32) std::memcpy(to, &value, 4);
      if (tensor.dtype == Dtype::int32) std::memcpy(to, &number, 4);
      if (tensor.dtype == Dtype::uint8) *to = static_cast<std::uint8_t>(number);
    }
    return memory;
  }

  Random random_;
  edge::Operands operands_;
  std::map<std::array<std::uint64_t, 3>, std::unique_ptr<std::uint8_t[]>> memory_;
};

// Instruction sets round differently, and no further apart than sums of a few thousand products do.
inline bool near(const Bytes& a, const Bytes& b) {
  for (std::size_t at = 0; at + 4 <= a.size(); at += 4) {
    float x, y;
    std::memcpy(&x, a.data() + at, 4);
    std::memcpy(&y, b.data() + at, 4);
    if (std::memcmp(&x, &y, 4) != 0 && !(std::fabs(x - y) <= 1e-3F + 1e-4F * std::fabs(x)))
      return false;
  }
  return true;
}

inline void run_apart(const edge::Plan& plan, std::uint64_t seed, bool compare) {
  for (const edge::Op& op : plan.ops) {
    const auto code = static_cast<edge::Opcode>(op.code);
    Bytes first;
    for (const edge::Kernels* kernels : edge::available_kernels()) {
      const Bytes one = Apart(plan, op, seed).run(code, *kernels, 1);
      CHECK(one == Apart(plan, op, seed).run(code, *kernels, 3));
      if (first.empty()) first = one;
      if (compare) CHECK(near(first, one));
    }
  }
}

inline double work_of(const edge::Plan& plan) {
  double work = 0.0;
  for (const edge::Op& op : plan.ops) {
    edge::Operands operands;
    for (std::size_t i = 0; i < op.inputs.size(); ++i)
      if (op.inputs[i] != edge::kAbsent) operands.in[i].tensor = &plan.tensors[op.inputs[i]];
    for (std::size_t i = 0; i < op.outputs.size(); ++i)
      if (op.outputs[i] != edge::kAbsent) operands.out[i].tensor = &plan.tensors[op.outputs[i]];
    operands.attributes = {op.attributes.data(), op.attributes.size()};
    work +=
        edge::prepare(static_cast<edge::Opcode>(op.code), operands, *edge::available_kernels()[0])
            .work;
  }
  return work;
}

// Whether the reader took it, and it ran.
inline bool survives(const Bytes& bytes, std::uint64_t seed, bool compare) {
  try {
    const edge::Plan plan = edge::parse_plan(build::span(bytes));
    if (plan.arena_bytes + plan.workspace_bytes > 2 * kMostBytes || work_of(plan) > kMostWork)
      return false;
    run_apart(plan, seed, compare);
    edge::Engine engine(build::span(bytes), seed % 8 == 0 ? 2 : 1, "auto");
    engine.poison();
    engine.step();
    return true;
  } catch (const edge::PlanError&) {
    return false;
  }
}

}  // namespace fuzz
