// The program of a fused map as the engine lays it out: stages, tiles, registers. Internal to the
// engine.
#pragma once

#include <memory>
#include <vector>

#include "engine/prepare.h"

namespace edge {

// An operand, a constant, or what a step computes, numbered in this order.
struct MapValue {
  std::uint32_t axes = 0;  // those it varies along, a bit mask; axes of one place are left out
  std::int32_t depth = 0;  // reductions that lie between it and the operands
  bool step = false;
  MapFunction function = MapFunction::add;
  std::vector<std::int32_t> in;
  bool needed = false;
  // Of a sum: what it takes of an element, whose operands come first; behind them the weight of a
  // weighted sum, or the x of two sums that are made in one visit, of d and of d * x.
  MapFunction summand = MapFunction::element;
  bool weighted = false;
  enum Pair : std::uint8_t { alone, of_d, of_products } pair = alone;
};

inline bool is_reduction(MapFunction function) {
  return function >= MapFunction::sum && function <= MapFunction::minimum;
}

// What the attributes say.
struct MapListing {
  Index dims[kMapAxes] = {1, 1, 1, 1};
  std::uint32_t reduced = 0;
  std::int32_t n_operands = 0, n_constants = 0;
  std::vector<float> constants;
  std::vector<MapValue> values;
  std::vector<std::int32_t> results;

  std::uint32_t whole() const {
    std::uint32_t axes = 0;
    for (Index d = 0; d < kMapAxes; ++d) axes |= dims[d] > 1 ? 1U << d : 0U;
    return axes;
  }
  // The same for every place of a group.
  bool of_group(const MapValue& value) const { return (value.axes & reduced) == 0; }
  std::uint64_t elements(std::uint32_t axes) const {
    std::uint64_t product = 1;
    for (Index d = 0; d < kMapAxes; ++d) {
      if ((axes >> d & 1U) != 0)
        product = checked_mul(product, static_cast<std::uint64_t>(dims[d]), "BadShape");
    }
    return product;
  }
};

inline bool share_bytes(const Tensor& a, const Tensor& b) {
  return a.role != Role::constant && b.role != Role::constant && a.offset < b.offset + b.bytes &&
         b.offset < a.offset + a.bytes;
}

// The arrays a MapProgram points to.
struct LaidMap {
  MapProgram program;
  std::vector<float> constants;
  std::vector<MapTensor> operands, results;
  std::vector<MapStage> stages;
  std::vector<MapStep> steps;
  std::vector<MapReduction> reductions;
  std::vector<std::int32_t> loads;
  std::vector<Index> registers;
  Index scratch_floats = 0;
};

// Marks what the results need.
void mark_needed(MapListing& list);

// Makes one step of several where the kernels have one; the bits of every result stay the same.
void join_steps(MapListing& list);

// Two steps that one loop makes: its function and operands, none where there is no such loop.
struct StepPair {
  MapFunction function = MapFunction::add;
  std::vector<std::int32_t> in;
};
StepPair pair_of(const MapListing& list, std::size_t first, std::size_t second);

// Puts a checked listing in order.
std::shared_ptr<const LaidMap> lay_out_map(MapListing list, const Operands& operands);

}  // namespace edge
