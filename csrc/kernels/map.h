// A short program of elementwise functions and reductions, run over tiles that stay in the first
// cache: one pass over memory where separate kernels make one each.
//
// The space is a dense box of four axes (outer, outer, rows, columns), some of them reduced. An
// operand has all of them or is repeated along some. The box falls into groups: the places that
// share their kept axes. A program runs in stages. In each, its steps run tile by tile over the
// reduced axes of one group (or of neighbouring groups that fit one tile) and feed that stage's
// sums, maxima and minima; their results are numbers of the group for the stages after it. What a
// later stage needs of an earlier one is computed again from the operands, unless one tile holds
// all of the group and keeps it. Results over the whole box are written in the last stage.
//
// Functions and their errors are those of unary.h, binary.h and elementwise.h. Sums: each tile in
// float32 lanes (down columns sixteen tiles), over tiles in float64. Maxima and minima: a NaN wins.
// A result of box size may be exactly an operand of box size. Bytes moved: every operand once a
// stage that reads it, from memory in the first and mostly from cache in the others; every result
// once.
#pragma once

#include "kernels/unary.h"
#include "kernels/worker.h"

namespace edge {

// The numbers of the plan format; below kUnaryFunctions those of UnaryFunction.
enum class MapFunction : std::int32_t {
  div = 32,  // in the order of BinaryFunction
  pow,
  min,
  max,
  equal,
  less,
  less_equal,
  add = 48,
  sub,
  mul,
  relu,
  relu_grad,  // of d_y, y
  where,      // of condition, a, b
  sum = 64,   // over the reduced axes of the box
  maximum,
  minimum,
  // Steps in a row that the engine makes one; no number of the plan format.
  multiply_add = 128,  // a * b + c
  multiply_sub,        // a * b - c
  sub_multiply,        // c - a * b
  multiply_add_relu,   // relu(a * b + c)
  clip_grad,           // relu_grad(a * (b < c), b): of a clip to 0..c
  // Those of a normalisation (map_norms.h): d and x are of the box, other operands of rows.
  affine_clip,         // min(relu(x * a + b), limit)
  affine_relu_grad,    // relu_grad(d, relu(x * a + b))
  affine_clip_grad,    // clip_grad(d, relu(x * a + b), limit)
  weighted_sum,        // (d * s + x * t) + u
  weighted_relu_grad,  // a weighted_sum whose d is an affine_relu_grad
  weighted_clip_grad,  // a weighted_sum whose d is an affine_clip_grad
  centred_relu,        // x - m, and relu((x - m) * a + b)
  centred_clip,        // x - m, and min(relu((x - m) * a + b), limit)
  square_difference,   // (x - a) * (x - a): of a sum
  element,             // of a sum: what it is of
};

constexpr Index kMapAxes = 4;
// Elements of a tile. Starting a loop costs as much as some dozen vectors, so where vectors are
// wide a tile is large, and partly lies in the second cache. A plan has room for either, so that it
// runs on every machine.
constexpr Index kMapSmallTile = 1024, kMapLargeTile = 2048;
#if defined(__x86_64__)
constexpr Index kMapTile = kMapLargeTile;
#else
constexpr Index kMapTile = kMapSmallTile;
#endif
constexpr Index kMapPad = 32;    // floats behind a register that a vector loop may touch
constexpr Index kMapLanes = 16;  // an upper bound of kLanes, for scratch that fits every machine

constexpr std::int32_t kMapOperands = 16, kMapResults = 8, kMapConstants = 64, kMapSteps = 256;
constexpr std::int32_t kMapStepOperands = 9;  // of joined steps; others have three at most

// How a value lies in a tile: one number, one a row, one a column, or one an element.
enum MapKind : std::uint8_t { kMapOne = 0, kMapRows = 1, kMapColumns = 2, kMapFull = 3 };

// An operand or a result. A slot is a place in the kernel's table of addresses: operands, then
// constants, then registers.
struct MapTensor {
  float* data = nullptr;
  Index strides[kMapAxes] = {};
  Index elements = 0;
  bool direct = false;  // a result that steps write where it belongs, rather than into a register
  Index cell = 0;  // where an operand is copied that cannot be read in place, in floats of scratch
  std::int32_t slot = 0;
  MapKind kind = kMapOne;
};

struct MapStep {
  MapFunction function = MapFunction::add;
  MapKind kind = kMapOne;  // of the result
  // Row by row, for a box-sized result of an operand that rows or columns have in common; otherwise
  // the tile is one long row.
  bool by_rows = false;
  std::uint8_t moving = 0;  // a bit for each of three operands: a number for each place in a row
  std::int32_t n_in = 0;
  std::int8_t row_numbers[kMapStepOperands] = {};  // 0 or 1 to the next row; -1 for a whole row
  std::int32_t in[kMapStepOperands] = {};
  std::int32_t out = 0;  // no slot of an operand or of `in`
  std::int32_t second =
      -1;  // of a step with two results; beside a weighted gradient its activation
};

struct MapReduction {
  MapFunction function = MapFunction::sum;
  MapKind kind = kMapOne;  // of the result
  // What it takes of an element. Behind the operands of a sum's function, a mul among others: one
  // number for the tile to multiply with, if it is weighted; x of a pair, a sum of d and one of d *
  // x.
  MapStep summand;
  bool weighted = false, pair = false;
  std::int32_t out = 0, pair_out = 0;
  Index total = 0, floats = 0;  // its accumulators in scratch; at a multiple of 64 bytes
  Index pair_total = 0;
};

// Part of one of the arrays of MapProgram.
struct MapRange {
  std::int32_t begin = 0, end = 0;
};

struct MapStage {
  MapRange group_steps;                       // once a group, before the tiles
  MapRange loads, steps, reductions, stores;  // for each tile, but the ends of the reductions
  bool tiles = false;
};

struct MapProgram {
  Index dims[kMapAxes] = {1, 1, 1, 1};
  bool reduced[kMapAxes] = {};
  Index tile_rows = 1, tile_columns = 1;  // more than one row only of whole columns
  MapRange group_loads, group_stores;
  std::int32_t n_operands = 0, n_constants = 0, n_registers = 0, n_stages = 0;
  const MapTensor* operands = nullptr;
  const float* constants = nullptr;  // kMapPad more may be read
  const Index* registers = nullptr;  // their places in scratch, in floats
  const MapStage* stages = nullptr;
  const MapStep* steps = nullptr;
  const MapReduction* reductions = nullptr;
  const std::int32_t* loads = nullptr;  // numbers of operands
  const MapTensor* results = nullptr;
};

}  // namespace edge
