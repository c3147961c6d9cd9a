#include "engine/map_layout.h"

#include <algorithm>

namespace edge {

namespace {

MapKind kind_of(const MapValue& value) { return static_cast<MapKind>(value.axes >> 2); }

// A product that one step alone reads becomes part of that step, or of the sum that reads it; so do
// the steps of a clip and of its gradient. The bits of every result stay those of the steps alone.
class StepFusion {
 public:
  explicit StepFusion(MapListing& list) : list_(list), readers_(list.values.size(), 0) {
    for (const MapValue& value : list.values) {
      for (const std::int32_t in : value.in) readers_[at(in)] += value.needed ? 1 : 0;
    }
    for (const std::int32_t result : list.results) ++readers_[at(result)];
  }

  void run() {
    for (MapValue& value : list_.values) {
      if (!value.needed || !value.step) continue;
      if (value.function == MapFunction::add && !fuse(value, 0, MapFunction::multiply_add))
        fuse(value, 1, MapFunction::multiply_add);
      else if (value.function == MapFunction::sub && !fuse(value, 0, MapFunction::multiply_sub))
        fuse(value, 1, MapFunction::sub_multiply);
      else if (value.function == MapFunction::relu)
        fuse_relu(value);
      else if (value.function == MapFunction::relu_grad)
        fuse_clip_grad(value);
      else if (value.function == MapFunction::sum)
        fuse_sum(value);
    }
  }

 private:
  static std::size_t at(std::int32_t value) { return static_cast<std::size_t>(value); }

  MapValue& value_of(std::int32_t number) { return list_.values[at(number)]; }

  // A step of this function that nothing else reads.
  bool own(std::int32_t number, MapFunction function, std::uint32_t axes) {
    const MapValue& value = value_of(number);
    return value.step && value.function == function && value.axes == axes &&
           readers_[at(number)] == 1;
  }

  bool fuse(MapValue& value, std::size_t side, MapFunction function) {
    const std::int32_t number = value.in[side], other = value.in[1 - side];
    if (!own(number, MapFunction::mul, value.axes)) return false;
    MapValue& mul = value_of(number);
    mul.needed = false;
    value.in = {mul.in[0], mul.in[1], other};
    value.function = function;
    return true;
  }

  void fuse_relu(MapValue& value) {
    if (!own(value.in[0], MapFunction::multiply_add, value.axes)) return;
    MapValue& sum = value_of(value.in[0]);
    sum.needed = false;
    value.in = sum.in;
    value.function = MapFunction::multiply_add_relu;
  }

  // relu_grad(d * less(y, limit), y)
  void fuse_clip_grad(MapValue& value) {
    const std::int32_t number = value.in[0], y = value.in[1];
    if (!own(number, MapFunction::mul, value.axes)) return;
    MapValue& mul = value_of(number);
    for (std::size_t side = 0; side < 2; ++side) {
      MapValue& less = value_of(mul.in[side]);
      if (!own(mul.in[side], MapFunction::less, less.axes) || less.in[0] != y) continue;
      mul.needed = less.needed = false;
      value.in = {mul.in[1 - side], y, less.in[1]};
      value.function = MapFunction::clip_grad;
      return;
    }
  }

  void fuse_sum(MapValue& value) {
    const std::int32_t weight = take_weight(value);
    if (own(value.in[0], MapFunction::mul, list_.whole())) {
      MapValue& mul = value_of(value.in[0]);
      if (whole(mul.in[0]) && whole(mul.in[1])) {
        mul.needed = false;
        value.in = mul.in;
      }
    }
    if (value.weighted) value.in.push_back(weight);
  }

  // Has a sum read the other factor of a product with what is one number in a tile; that number.
  std::int32_t take_weight(MapValue& sum) {
    if (!own(sum.in[0], MapFunction::mul, list_.whole())) return -1;
    MapValue& mul = value_of(sum.in[0]);
    for (std::size_t side = 0; side < 2; ++side) {
      const std::int32_t weight = mul.in[side];
      if (whole(weight) || kind_of(value_of(weight)) != kMapOne || !whole(mul.in[1 - side]))
        continue;
      mul.needed = false;
      sum.weighted = true;
      sum.in = {mul.in[1 - side]};
      return weight;
    }
    return -1;
  }

  bool whole(std::int32_t number) { return value_of(number).axes == list_.whole(); }

  MapListing& list_;
  std::vector<std::int32_t> readers_;
};

// Puts a checked listing in order. Steps first name values; registers are given to them at the end,
// when it is known how long each lives.
class Layout {
 public:
  Layout(MapListing list, const Operands& o, Index tile) : list_(std::move(list)), tile_(tile) {
    lay_tiles();
    lay_tensors(o);
    lay_stages();
    lay_registers();
    bind();
  }
  std::shared_ptr<LaidMap> take() { return std::move(laid_); }

 private:
  // Rows are tiled together only whole, so that a tile is contiguous in every box-sized tensor.
  void lay_tiles() {
    MapProgram& p = laid_->program;
    std::copy(list_.dims, list_.dims + kMapAxes, p.dims);
    for (Index d = 0; d < kMapAxes; ++d) p.reduced[d] = (list_.reduced >> d & 1U) != 0;
    const Index rows = p.dims[2], columns = p.dims[3];
    const auto even = [](Index size, Index most) {
      const Index pieces = (size + most - 1) / most;
      return (size + pieces - 1) / pieces;
    };
    if (columns <= tile_) {
      p.tile_columns = columns;
      p.tile_rows = even(rows, tile_ / columns);
    } else {
      p.tile_columns = std::min(tile_, (even(columns, tile_) + 15) / 16 * 16);
    }
    resident_ = true;
    const Index steps[kMapAxes] = {1, 1, p.tile_rows, p.tile_columns};
    for (Index d = 0; d < kMapAxes; ++d) resident_ &= !p.reduced[d] || p.dims[d] <= steps[d];
  }

  Index room(MapKind kind) const {
    const MapProgram& p = laid_->program;
    const Index rows = (kind & kMapRows) != 0 ? p.tile_rows : 1;
    const Index columns = (kind & kMapColumns) != 0 ? p.tile_columns : 1;
    return (rows * columns + kMapPad + 15) / 16 * 16;
  }

  Index reserve(Index floats) {
    const Index at = laid_->scratch_floats;
    laid_->scratch_floats += floats;
    return at;
  }

  MapTensor tensor_of(const Operand& operand, const MapValue& value) const {
    MapTensor tensor;
    tensor.data = floats_out(operand);
    tensor.elements = elements(operand);
    tensor.kind = kind_of(value);
    Index stride = 1;
    for (Index d = kMapAxes - 1; d >= 0; --d) {
      if ((value.axes >> d & 1U) == 0) continue;
      tensor.strides[d] = stride;
      stride *= list_.dims[d];
    }
    return tensor;
  }

  void lay_tensors(const Operands& o) {
    for (std::size_t i = 0; i < o.n_inputs; ++i) {
      MapTensor tensor = tensor_of(o.in[i], list_.values[i]);
      tensor.cell = reserve(room(tensor.kind));
      tensor.slot = static_cast<std::int32_t>(i);
      laid_->operands.push_back(tensor);
    }
    laid_->constants = list_.constants;
    laid_->constants.resize(laid_->constants.size() + kMapPad);
    // Those of the box first: the stage of the last tiles stores them.
    for (const bool group : {false, true}) {
      for (std::size_t i = 0; i < o.n_outputs; ++i) {
        const std::int32_t number = list_.results[i];
        const MapValue& value = list_.values[static_cast<std::size_t>(number)];
        if (list_.of_group(value) != group) continue;
        MapTensor tensor = tensor_of(o.out[i], value);
        tensor.slot = number;
        tensor.direct = direct(o, i, value);
        laid_->results.push_back(tensor);
        n_box_results_ += group ? 0 : 1;
      }
    }
  }

  // A box-sized result in bytes of its own may be written before everything has read its tile.
  bool direct(const Operands& o, std::size_t result, const MapValue& value) const {
    bool apart = value.axes == list_.whole() && (value.axes & 8U) != 0;
    for (std::size_t k = 0; k < o.n_inputs; ++k)
      apart &= !share_bytes(*o.in[k].tensor, *o.out[result].tensor);
    for (std::size_t i = 0; i < result; ++i) apart &= list_.results[i] != list_.results[result];
    return apart;
  }

  // Steps and reductions in the order in which they run. A slot below base() is that of an operand
  // or a constant, one from there on a register that lay_registers() will find a place for.
  void lay_stages() {
    std::int32_t last = 0, last_tiles = -1;
    for (const MapValue& value : list_.values) {
      if (!value.needed) continue;
      last = std::max(last, value.depth);
      const bool reduces = value.step && is_reduction(value.function);
      if (reduces) last_tiles = std::max(last_tiles, value.depth - 1);
      if (!list_.of_group(value)) last_tiles = std::max(last_tiles, value.depth);
    }
    slots_.resize(list_.values.size());
    for (std::int32_t v = 0; v < base(); ++v) slots_[static_cast<std::size_t>(v)] = v;
    computed_.assign(list_.values.size(), false);
    laid_->program.group_loads = add_loads([this](std::size_t v) {
      return list_.values[v].needed && list_.of_group(list_.values[v]);
    });
    for (std::int32_t depth = 0; depth <= last; ++depth) lay_stage(depth, depth == last_tiles);
    laid_->program.group_stores = {n_box_results_,
                                   static_cast<std::int32_t>(laid_->results.size())};
    for (std::size_t i = static_cast<std::size_t>(n_box_results_); i < laid_->results.size(); ++i)
      take_result(laid_->results[i], {0, here()});
  }

  std::int32_t base() const { return list_.n_operands + list_.n_constants; }
  std::int32_t here() const { return static_cast<std::int32_t>(laid_->steps.size()); }
  std::int32_t slot_of(std::int32_t value) const { return slots_[static_cast<std::size_t>(value)]; }
  const MapValue& value_of(std::int32_t value) const {
    return list_.values[static_cast<std::size_t>(value)];
  }

  template <class Chosen>
  MapRange add_loads(Chosen chosen) {
    MapRange range{static_cast<std::int32_t>(laid_->loads.size()), 0};
    for (std::int32_t i = 0; i < list_.n_operands; ++i) {
      if (chosen(static_cast<std::size_t>(i))) laid_->loads.push_back(i);
    }
    range.end = static_cast<std::int32_t>(laid_->loads.size());
    return range;
  }

  bool reduced_at(const MapValue& value, std::int32_t depth) const {
    return value.needed && value.step && is_reduction(value.function) && value.depth == depth + 1;
  }

  // Values of the tiles of one stage: what its reductions and stores need, back to the operands.
  std::vector<bool> cone(std::int32_t depth, bool stores) const {
    std::vector<bool> wanted(list_.values.size(), false);
    for (const MapValue& value : list_.values) {
      if (!reduced_at(value, depth)) continue;
      for (const std::int32_t in : value.in) wanted[static_cast<std::size_t>(in)] = true;
    }
    for (std::int32_t i = 0; stores && i < n_box_results_; ++i)
      wanted[static_cast<std::size_t>(laid_->results[static_cast<std::size_t>(i)].slot)] = true;
    for (std::size_t v = wanted.size(); v-- > 0;) {
      if (list_.of_group(list_.values[v])) wanted[v] = false;
      if (!wanted[v]) continue;
      for (const std::int32_t in : list_.values[v].in) wanted[static_cast<std::size_t>(in)] = true;
    }
    return wanted;
  }

  void lay_stage(std::int32_t depth, bool stores) {
    MapStage stage;
    stage.group_steps.begin = here();
    for (std::size_t v = 0; v < list_.values.size(); ++v) {
      const MapValue& value = list_.values[v];
      const bool group = value.needed && value.step && !is_reduction(value.function) &&
                         list_.of_group(value) && value.depth == depth;
      if (group) add_step(v);
    }
    stage.group_steps.end = here();
    const std::vector<bool> wanted = cone(depth, stores);
    stage.tiles = std::find(wanted.begin(), wanted.end(), true) != wanted.end();
    // A tile that holds all of a group keeps what earlier stages computed.
    const auto missing = [&](std::size_t v) { return wanted[v] && !(resident_ && computed_[v]); };
    stage.loads = add_loads(missing);
    stage.steps.begin = here();
    for (std::size_t v = 0; v < list_.values.size(); ++v) {
      if (missing(v) && list_.values[v].step) add_step(v);
      if (wanted[v]) computed_[v] = true;
    }
    stage.steps.end = here();
    // What a tile reads stays until the last one has.
    for (std::int32_t i = stage.steps.begin; i < stage.steps.end; ++i) {
      for (const std::int32_t slot : laid_->steps[static_cast<std::size_t>(i)].in) {
        if (!made_in(slot, stage.steps)) use(slot);
      }
    }
    add_reductions(depth, stage);
    stage.stores = {0, stores ? n_box_results_ : 0};
    for (std::int32_t i = 0; i < stage.stores.end; ++i)
      take_result(laid_->results[static_cast<std::size_t>(i)], stage.steps);
    laid_->stages.push_back(stage);
  }

  // From the value a result shows to the slot that holds it; `steps` run after the kernel has
  // decided where direct results go.
  void take_result(MapTensor& result, const MapRange& steps) {
    result.slot = slot_of(result.slot);
    use(result.slot);
    result.direct &= made_in(result.slot, steps);
    if (result.direct) lives_[static_cast<std::size_t>(result.slot - base())].alone = true;
  }

  void add_step(std::size_t v) {
    const MapValue& value = list_.values[v];
    MapStep step;
    step.function = value.function;
    step.kind = kind_of(value);
    for (std::size_t k = 0; k < value.in.size(); ++k) {
      const MapKind kind = kind_of(value_of(value.in[k]));
      step.in[k] = slot_of(value.in[k]);
      use(step.in[k]);
      step.by_rows |= step.kind == kMapFull && kind != kMapFull && kind != kMapOne;
      step.row_numbers[k] = kind == kMapFull ? -1 : (kind & kMapRows) != 0 ? 1 : 0;
    }
    for (std::size_t k = 0; k < value.in.size(); ++k) {
      const MapKind kind = kind_of(value_of(value.in[k]));
      const bool moves = step.by_rows ? (kind & kMapColumns) != 0 : kind != kMapOne;
      step.moving = static_cast<std::uint8_t>(step.moving | (moves ? 1U << k : 0U));
    }
    step.out = slots_[v] = born(step.kind);
    laid_->steps.push_back(step);
  }

  void add_reductions(std::int32_t depth, MapStage& stage) {
    stage.reductions.begin = static_cast<std::int32_t>(laid_->reductions.size());
    for (std::size_t v = 0; v < list_.values.size(); ++v) {
      const MapValue& value = list_.values[v];
      if (!reduced_at(value, depth)) continue;
      MapReduction reduction;
      reduction.function = value.function;
      reduction.kind = kind_of(value);
      reduction.in = slot_of(value.in[0]);
      use(reduction.in);
      if (value.weighted) {
        reduction.weight = slot_of(value.in.back());
        use(reduction.weight);
      }
      if (value.in.size() > (value.weighted ? 2 : 1)) {
        reduction.times = slot_of(value.in[1]);
        use(reduction.times);
      }
      const bool along = (reduction.kind & kMapColumns) == 0;
      // Sums down columns have a float for each beside their double.
      reduction.floats = along ? 2 * kMapLanes * room(reduction.kind) : 3 * room(reduction.kind);
      reduction.total = reserve(reduction.floats);
      reduction.out = slots_[v] = born(reduction.kind);
      laid_->reductions.push_back(reduction);
    }
    stage.reductions.end = static_cast<std::int32_t>(laid_->reductions.size());
  }

  // A number computed at some step and read until another, in a register of its kind.
  struct Life {
    MapKind kind;
    std::int32_t born, last;
    bool alone;  // no other life has its register
  };

  std::int32_t born(MapKind kind) {
    lives_.push_back({kind, here(), here(), false});
    return base() + static_cast<std::int32_t>(lives_.size()) - 1;
  }

  void use(std::int32_t slot) {
    if (slot >= base()) lives_[static_cast<std::size_t>(slot - base())].last = here();
  }

  bool made_in(std::int32_t slot, const MapRange& steps) const {
    if (slot < base()) return false;
    const Life& life = lives_[static_cast<std::size_t>(slot - base())];
    return life.born >= steps.begin && life.born < steps.end;
  }

  static bool follows(const Life& life, const Life& before) {
    return life.kind == before.kind && before.last < life.born && !life.alone && !before.alone;
  }

  // A register is free again after the last step that reads it, never for that step's own result.
  void lay_registers() {
    std::vector<std::int32_t> found(lives_.size());
    std::vector<std::size_t> holder;  // of each register, the life that had it last
    for (std::size_t i = 0; i < lives_.size(); ++i) {
      std::size_t r = 0;
      while (r < holder.size() && !follows(lives_[i], lives_[holder[r]])) ++r;
      if (r == holder.size()) {
        holder.push_back(i);
        laid_->registers.push_back(reserve(room(lives_[i].kind)));
      }
      holder[r] = i;
      found[i] = base() + static_cast<std::int32_t>(r);
    }
    const auto settle = [&](std::int32_t& slot) {
      if (slot >= base()) slot = found[static_cast<std::size_t>(slot - base())];
    };
    for (MapStep& step : laid_->steps) {
      for (std::int32_t& in : step.in) settle(in);
      settle(step.out);
    }
    for (MapReduction& reduction : laid_->reductions) {
      settle(reduction.in);
      settle(reduction.times);
      settle(reduction.weight);
      settle(reduction.out);
    }
    for (MapTensor& result : laid_->results) settle(result.slot);
  }

  void bind() {
    MapProgram& p = laid_->program;
    p.n_operands = list_.n_operands;
    p.n_constants = list_.n_constants;
    p.n_registers = static_cast<std::int32_t>(laid_->registers.size());
    p.n_stages = static_cast<std::int32_t>(laid_->stages.size());
    p.operands = laid_->operands.data();
    p.constants = laid_->constants.data();
    p.registers = laid_->registers.data();
    p.stages = laid_->stages.data();
    p.steps = laid_->steps.data();
    p.reductions = laid_->reductions.data();
    p.loads = laid_->loads.data();
    p.results = laid_->results.data();
  }

  MapListing list_;
  Index tile_;  // the most elements of one
  std::shared_ptr<LaidMap> laid_ = std::make_shared<LaidMap>();
  bool resident_ = true;
  std::int32_t n_box_results_ = 0;
  std::vector<std::int32_t> slots_;  // of each value, where it was computed last
  std::vector<bool> computed_;       // in a tile of an earlier stage
  std::vector<Life> lives_;
};

}  // namespace

std::shared_ptr<const LaidMap> lay_out_map(MapListing list, const Operands& operands) {
  StepFusion(list).run();
  const std::shared_ptr<LaidMap> laid = Layout(list, operands, kMapTile).take();
  constexpr Index kOther = kMapTile == kMapSmallTile ? kMapLargeTile : kMapSmallTile;
  const Index other = Layout(std::move(list), operands, kOther).take()->scratch_floats;
  laid->scratch_floats = std::max(laid->scratch_floats, other);
  return laid;
}

}  // namespace edge
