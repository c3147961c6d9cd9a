#include "kernels/map.h"

#include "kernels/map_norms.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr Index kRows = 2, kColumns = 3;  // axes of a tile; the two before are walked one by one

// A piece of the box along every axis.
struct Tile {
  Index begin[kMapAxes], rows, columns;
};

// The steps of a walk over some axes of the box, tile by tile.
struct Walk {
  Index counts[kMapAxes];
  Index total;
};

Walk walk_of(const MapProgram& program, bool reduced) {
  const Index steps[kMapAxes] = {1, 1, program.tile_rows, program.tile_columns};
  Walk walk{{1, 1, 1, 1}, 1};
  for (Index d = 0; d < kMapAxes; ++d) {
    if (program.reduced[d] == reduced) walk.counts[d] = ceil_div(program.dims[d], steps[d]);
    walk.total *= walk.counts[d];
  }
  return walk;
}

// Where the number-th step of a walk stands, on the axes of that walk.
void go_to(const MapProgram& program, const Walk& walk, bool reduced, Index number, Tile& tile) {
  const Index steps[kMapAxes] = {1, 1, program.tile_rows, program.tile_columns};
  for (Index d = kMapAxes - 1; d >= 0; --d) {
    if (program.reduced[d] != reduced) continue;
    tile.begin[d] = number % walk.counts[d] * steps[d];
    number /= walk.counts[d];
  }
  tile.rows = smaller(program.tile_rows, program.dims[kRows] - tile.begin[kRows]);
  tile.columns = smaller(program.tile_columns, program.dims[kColumns] - tile.begin[kColumns]);
}

Index place_of(const MapTensor& tensor, const Tile& tile) {
  Index place = 0;
  for (Index d = 0; d < kMapAxes; ++d) place += tile.begin[d] * tensor.strides[d];
  return place;
}

// Numbers of a value of this kind in a tile.
Index size_of(MapKind kind, const Tile& tile) {
  return ((kind & kMapRows) != 0 ? tile.rows : 1) * ((kind & kMapColumns) != 0 ? tile.columns : 1);
}

struct Machine {
  const MapProgram& program;
  float* scratch;
  float* at[kMapOperands + kMapConstants + kMapSteps];  // by slot

  // An operand is read where it lies, unless a vector could reach beyond its end; single numbers
  // and those of rows are copied, since a loop over them alone reads whole vectors.
  void load_operand(const MapTensor& operand, const Tile& tile) {
    const Index place = place_of(operand, tile), size = size_of(operand.kind, tile);
    float* from = operand.data + place;
    at[operand.slot] = from;
    const bool inside = tile.columns % kLanes == 0 || place + size + kLanes <= operand.elements;
    if ((operand.kind & kMapColumns) != 0 && inside) return;
    at[operand.slot] = scratch + operand.cell;
    __builtin_memcpy(at[operand.slot], from, static_cast<std::size_t>(size) * sizeof(float));
  }

  void load(MapRange range, const Tile& tile) {
    for (Index i = range.begin; i < range.end; ++i) {
      load_operand(program.operands[program.loads[i]], tile);
    }
  }

  void find(const MapStep& step, const Tile& tile, LoopOperand* in) const {
    for (std::int32_t k = 0; k < step.n_in; ++k) {
      in[k] = {at[step.in[k]], step.row_numbers[k] < 0 ? tile.columns : step.row_numbers[k]};
    }
  }

  void run(const MapStep& step, const Tile& tile) {
    LoopOperand in[kMapStepOperands];
    find(step, tile, in);
    const Index rows = step.by_rows ? tile.rows : 1;
    const Index columns = step.by_rows ? tile.columns : size_of(step.kind, tile);
    if (step.second < 0)
      return loop_of(step.function, step.moving)(at[step.out], in, rows, columns);
    pair_loop_of(step.function)(at[step.out], at[step.second], in, rows, columns);
  }

  void run(MapRange range, const Tile& tile) {
    for (Index i = range.begin; i < range.end; ++i) run(program.steps[i], tile);
  }

  // Whole vectors alone may be written where a neighbouring tile may lie behind the last one.
  bool written_direct(const MapTensor& result, const Tile& tile) const {
    return result.direct && tile.columns % kLanes == 0;
  }

  void point_results(MapRange range, const Tile& tile) {
    for (Index i = range.begin; i < range.end; ++i) {
      const MapTensor& result = program.results[i];
      if (!result.direct) continue;
      const bool direct = written_direct(result, tile);
      at[result.slot] = direct ? result.data + place_of(result, tile)
                               : scratch + program.registers[result.slot - base()];
    }
  }

  std::int32_t base() const { return program.n_operands + program.n_constants; }

  void store_results(MapRange range, const Tile& tile) {
    for (Index i = range.begin; i < range.end; ++i) {
      const MapTensor& result = program.results[i];
      if (written_direct(result, tile)) continue;
      __builtin_memcpy(result.data + place_of(result, tile), at[result.slot],
                       static_cast<std::size_t>(size_of(result.kind, tile)) * sizeof(float));
    }
  }
};

// Accumulators. Sums down columns: a double for each, and behind these a float for each that takes
// kFlush tiles at a time. Sums along rows: kMapLanes doubles a row, added up at the end. Extremes:
// floats in the same places.
constexpr Index kFlush = 16;

EDGE_INLINE void add_lanes(double* total, Vec v) {
  float lanes[EDGE_VECTOR_FLOATS];
  store(lanes, v);
  for (Index i = 0; i < kLanes; ++i) total[i] += static_cast<double>(lanes[i]);
}

EDGE_INLINE void add_some(double* total, Vec v, Index count) {
  float lanes[EDGE_VECTOR_FLOATS];
  store(lanes, v);
  for (Index i = 0; i < count; ++i) *total += static_cast<double>(lanes[i]);
}

// The sum of what an expression gives along a row, and of a pair its products with x too.
template <bool PAIR, class S>
void sum_row(const S& s, const float* x, Index size, double* total, double* pair_total) {
  Vec sums[4] = {}, pairs[4] = {};
  const auto take = [&](Index v, Index i) {
    const Vec value = s.at(i);
    sums[v] += value;
    if (PAIR) pairs[v] += product(value, load(x + i));
  };
  Index i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    EDGE_UNROLL
    for (Index v = 0; v < 4; ++v) take(v, i + v * kLanes);
  }
  for (; i + kLanes <= size; i += kLanes) take(0, i);
  if (size >= kLanes) {
    add_lanes(total, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    if (PAIR) add_lanes(pair_total, (pairs[0] + pairs[1]) + (pairs[2] + pairs[3]));
  }
  if (i == size) return;
  const Vec value = s.at(i);
  add_some(total, value, size - i);
  if (PAIR) add_some(pair_total, product(value, load(x + i)), size - i);
}

template <class S>
void sum_columns(const LoopOperand* in, Index rows, Index columns, float* partial) {
  for (Index i = 0; i < columns; i += kLanes) {
    Vec sum = load(partial + i);
    for (Index r = 0; r < rows; ++r) sum += S::of(in, r).at(i);
    store(partial + i, sum);
  }
}

template <class F>
void best_of_row(const float* x, Index size, float* best) {
  Index i = 0;
  Vec so_far = load(best);
  for (; i + kLanes <= size; i += kLanes) so_far = F::apply(load(x + i), so_far);
  store(best, so_far);
  for (; i < size; ++i) best[0] = F::apply(splat(x[i]), splat(best[0]))[0];
}

template <class F>
void best_of_columns(const float* x, Index rows, Index columns, float* best) {
  for (Index i = 0; i < columns; i += kLanes) {
    Vec so_far = load(best + i);
    for (Index r = 0; r < rows; ++r) so_far = F::apply(load(x + r * columns + i), so_far);
    store(best + i, so_far);
  }
}

// How a reduction walks a tile: along `rows` rows of `columns`, or down their columns.
struct Shape {
  bool along;
  Index rows, columns;
};

Shape shape_of(MapKind kind, const Tile& tile) {
  switch (kind) {
    case kMapOne:
      return {true, 1, tile.rows * tile.columns};
    case kMapRows:
      return {true, tile.rows, tile.columns};
    case kMapColumns:
      return {false, tile.rows, tile.columns};
    default:
      return {false, 1, tile.rows * tile.columns};
  }
}

void start(const MapReduction& reduction, float* total, Index floats) {
  const float first = reduction.function == MapFunction::sum       ? 0.0F
                      : reduction.function == MapFunction::maximum ? -__builtin_inff()
                                                                   : __builtin_inff();
  for (Index i = 0; i < floats; ++i) total[i] = first;
}

struct Totals {
  float *sum, *pair;
};

template <class S>
void feed_sum(const Shape& shape, const LoopOperand* in, bool flush, Totals totals) {
  auto* sums = reinterpret_cast<double*>(totals.sum);
  for (Index r = 0; shape.along && r < shape.rows; ++r)
    sum_row<false>(S::of(in, r), nullptr, shape.columns, sums + r * kMapLanes, nullptr);
  if (shape.along) return;
  float* partial = totals.sum + 2 * ceil_div(shape.columns, kMapLanes) * kMapLanes;
  sum_columns<S>(in, shape.rows, shape.columns, partial);
  for (Index i = 0; flush && i < shape.columns; ++i) {
    sums[i] += static_cast<double>(partial[i]);
    partial[i] = 0.0F;
  }
}

// Along rows only.
template <class D>
void feed_pair(const Shape& shape, const LoopOperand* in, bool, Totals totals) {
  auto *sums = reinterpret_cast<double*>(totals.sum),
       *pairs = reinterpret_cast<double*>(totals.pair);
  for (Index r = 0; r < shape.rows; ++r)
    sum_row<true>(D::of(in, r), row_of(in[D::kOperands], r), shape.columns, sums + r * kMapLanes,
                  pairs + r * kMapLanes);
}

using Feed = void (*)(const Shape& shape, const LoopOperand* in, bool flush, Totals totals);

Feed feed_of(const MapReduction& reduction) {
  const bool weighted = reduction.weighted, pair = reduction.pair;
  switch (reduction.summand.function) {
    case MapFunction::mul:
      return weighted ? feed_sum<Weighted<Product>> : feed_sum<Product>;
    case MapFunction::square_difference:
      return weighted ? feed_sum<Weighted<SquareDifference>> : feed_sum<SquareDifference>;
    case MapFunction::affine_relu_grad:
      return feed_pair<AffineReluGrad>;
    case MapFunction::affine_clip_grad:
      return feed_pair<AffineClipGrad>;
    default:
      return pair ? feed_pair<Element> : weighted ? feed_sum<Weighted<Element>> : feed_sum<Element>;
  }
}

template <class F>
void feed_best(const Shape& shape, const float* x, float* total) {
  if (!shape.along) return best_of_columns<F>(x, shape.rows, shape.columns, total);
  for (Index r = 0; r < shape.rows; ++r) {
    best_of_row<F>(x + r * shape.columns, shape.columns, total + r * kMapLanes);
  }
}

void feed(Machine& machine, const MapReduction& reduction, const Tile& tile, bool flush) {
  const Shape shape = shape_of(reduction.kind, tile);
  const float* x = machine.at[reduction.summand.in[0]];
  float* total = machine.scratch + reduction.total;
  if (reduction.function == MapFunction::sum) {
    LoopOperand in[kMapStepOperands];
    machine.find(reduction.summand, tile, in);
    feed_of(reduction)(shape, in, flush, {total, machine.scratch + reduction.pair_total});
  } else if (reduction.function == MapFunction::maximum) {
    feed_best<Max>(shape, x, total);
  } else {
    feed_best<Min>(shape, x, total);
  }
}

void finish_sum(const Shape& shape, const double* total, float* out) {
  const Index lanes = shape.along ? kLanes : 1, step = shape.along ? kMapLanes : 1;
  const Index numbers = shape.along ? shape.rows : shape.columns;
  for (Index i = 0; i < numbers; ++i) {
    double sum = 0.0;
    for (Index j = 0; j < lanes; ++j) sum += total[i * step + j];
    out[i] = static_cast<float>(sum);
  }
}

template <class F>
void finish_best(const Shape& shape, const float* total, float* out) {
  const Index lanes = shape.along ? kLanes : 1, step = shape.along ? kMapLanes : 1;
  const Index numbers = shape.along ? shape.rows : shape.columns;
  for (Index i = 0; i < numbers; ++i) {
    float best = total[i * step];
    for (Index j = 1; j < lanes; ++j) best = F::apply(splat(total[i * step + j]), splat(best))[0];
    out[i] = best;
  }
}

void finish(const MapReduction& reduction, const Tile& tile, const float* total, float* out) {
  const Shape shape = shape_of(reduction.kind, tile);
  if (reduction.function == MapFunction::sum) {
    finish_sum(shape, reinterpret_cast<const double*>(total), out);
  } else if (reduction.function == MapFunction::maximum) {
    finish_best<Max>(shape, total, out);
  } else {
    finish_best<Min>(shape, total, out);
  }
}

void run_stage(Machine& machine, const MapStage& stage, const Walk& inner, Tile& tile) {
  const MapProgram& program = machine.program;
  machine.run(stage.group_steps, tile);
  for (Index i = stage.reductions.begin; i < stage.reductions.end; ++i) {
    const MapReduction& reduction = program.reductions[i];
    start(reduction, machine.scratch + reduction.total, reduction.floats);
    if (reduction.pair) start(reduction, machine.scratch + reduction.pair_total, reduction.floats);
  }
  for (Index t = 0; stage.tiles && t < inner.total; ++t) {
    go_to(program, inner, true, t, tile);
    machine.load(stage.loads, tile);
    machine.point_results(stage.stores, tile);
    machine.run(stage.steps, tile);
    const bool flush = t + 1 == inner.total || t % kFlush == kFlush - 1;
    for (Index i = stage.reductions.begin; i < stage.reductions.end; ++i) {
      feed(machine, program.reductions[i], tile, flush);
    }
    machine.store_results(stage.stores, tile);
  }
  for (Index i = stage.reductions.begin; i < stage.reductions.end; ++i) {
    const MapReduction& reduction = program.reductions[i];
    finish(reduction, tile, machine.scratch + reduction.total, machine.at[reduction.out]);
    if (reduction.pair) {
      const float* total = machine.scratch + reduction.pair_total;
      finish(reduction, tile, total, machine.at[reduction.pair_out]);
    }
  }
}

}  // namespace

void map(const MapProgram& program, const Worker& worker) {
  Machine machine{program, worker.scratch, {}};
  float** slot = machine.at + program.n_operands;
  // Constants are only read: no step writes the slot of one.
  for (Index i = 0; i < program.n_constants; ++i)
    *slot++ = const_cast<float*>(program.constants + i);
  for (Index i = 0; i < program.n_registers; ++i) *slot++ = worker.scratch + program.registers[i];
  const Walk outer = walk_of(program, false), inner = walk_of(program, true);
  const Share share = share_of(outer.total, worker);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    Tile tile{};
    go_to(program, outer, false, unit, tile);
    machine.load(program.group_loads, tile);
    machine.point_results(program.group_stores, tile);
    for (Index s = 0; s < program.n_stages; ++s) {
      run_stage(machine, program.stages[s], inner, tile);
    }
    machine.store_results(program.group_stores, tile);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
