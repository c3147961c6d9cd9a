#include "engine/map_layout.h"

#include <algorithm>

namespace edge {

namespace {

MapKind kind_of(const MapValue& value) { return static_cast<MapKind>(value.axes >> 2); }

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
        over_.push_back(operand_under(o, i));
        tensor.direct = value.axes == list_.whole() && (value.axes & 8U) != 0 && shown_first(i);
        laid_->results.push_back(tensor);
        n_box_results_ += group ? 0 : 1;
      }
    }
  }

  // Whether no earlier result shows the same value.
  bool shown_first(std::size_t result) const {
    const auto begin = list_.results.begin(), end = begin + static_cast<std::ptrdiff_t>(result);
    return std::find(begin, end, list_.results[result]) == end;
  }

  // The operands whose bytes a result takes.
  std::vector<std::int32_t> operand_under(const Operands& o, std::size_t result) const {
    std::vector<std::int32_t> found;
    for (std::size_t k = 0; k < o.n_inputs; ++k) {
      if (share_bytes(*o.in[k].tensor, *o.out[result].tensor))
        found.push_back(static_cast<std::int32_t>(k));
    }
    return found;
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
    std::vector<std::size_t> once;
    for (std::size_t v = 0; v < list_.values.size(); ++v) {
      const MapValue& value = list_.values[v];
      const bool group = value.needed && value.step && !is_reduction(value.function) &&
                         list_.of_group(value) && value.depth == depth;
      if (group) once.push_back(v);
    }
    // Without a reduction every value is one of its group, those of the box among them.
    if (list_.reduced == 0) order_stores(once, depth);
    stage.group_steps.begin = here();
    for (const std::size_t v : once) add_step(v);
    stage.group_steps.end = here();
    const std::vector<bool> wanted = cone(depth, stores);
    stage.tiles = std::find(wanted.begin(), wanted.end(), true) != wanted.end();
    // A tile that holds all of a group keeps what earlier stages computed.
    const auto missing = [&](std::size_t v) { return wanted[v] && !(resident_ && computed_[v]); };
    stage.loads = add_loads(missing);
    std::vector<std::size_t> order;
    for (std::size_t v = 0; v < list_.values.size(); ++v) {
      if (missing(v) && list_.values[v].step) order.push_back(v);
      if (wanted[v]) computed_[v] = true;
    }
    // Numbers of rows follow from no element, so they can be made first.
    std::stable_partition(order.begin(), order.end(),
                          [this](std::size_t v) { return list_.values[v].axes != list_.whole(); });
    if (stores) order_stores(order, depth);
    stage.steps.begin = here();
    add_steps(order);
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

  bool reads_any(const MapValue& value, const std::vector<std::int32_t>& sought) const {
    return std::any_of(value.in.begin(), value.in.end(), [&](std::int32_t in) {
      return std::find(sought.begin(), sought.end(), in) != sought.end();
    });
  }

  // Whether a step behind `at` in the order reads one of these values.
  bool read_behind(const std::vector<std::size_t>& order, std::size_t at,
                   const std::vector<std::int32_t>& sought) const {
    return std::any_of(order.begin() + static_cast<std::ptrdiff_t>(at) + 1, order.end(),
                       [&](std::size_t v) { return reads_any(list_.values[v], sought); });
  }

  // A step may write a result over an operand that is read for the last time. So steps that nothing
  // else waits for go behind those that still read what they overwrite; where that does not help,
  // the result goes through a register.
  void order_stores(std::vector<std::size_t>& order, std::int32_t depth) {
    const std::int32_t results =
        list_.reduced == 0 ? static_cast<std::int32_t>(laid_->results.size()) : n_box_results_;
    const auto place = [&](std::int32_t i) {
      const auto value = static_cast<std::size_t>(laid_->results[static_cast<std::size_t>(i)].slot);
      return static_cast<std::size_t>(std::find(order.begin(), order.end(), value) - order.begin());
    };
    for (std::int32_t turn = 0; turn < results * results; ++turn) {
      const std::int32_t i = turn % results;
      const std::size_t at = place(i);
      if (at == order.size() || !read_behind(order, at, over_[static_cast<std::size_t>(i)]) ||
          read_behind(order, at, {static_cast<std::int32_t>(order[at])}))
        continue;
      std::rotate(order.begin() + static_cast<std::ptrdiff_t>(at),
                  order.begin() + static_cast<std::ptrdiff_t>(at) + 1, order.end());
    }
    for (std::int32_t i = 0; i < results; ++i) {
      const std::vector<std::int32_t>& over = over_[static_cast<std::size_t>(i)];
      const std::size_t at = place(i);
      bool late = at < order.size() && !read_behind(order, at, over);
      for (const MapValue& value : list_.values)
        late &= !reduced_at(value, depth) || !reads_any(value, over);
      laid_->results[static_cast<std::size_t>(i)].direct &= over.empty() || late;
    }
  }

  // From the value a result shows to the slot that holds it; `steps` run after the kernel has
  // decided where direct results go.
  void take_result(MapTensor& result, const MapRange& steps) {
    result.slot = slot_of(result.slot);
    use(result.slot);
    result.direct &= made_in(result.slot, steps);
    if (result.direct) lives_[static_cast<std::size_t>(result.slot - base())].alone = true;
  }

  MapStep step_of(MapFunction function, MapKind kind, const std::vector<std::int32_t>& operands) {
    MapStep step;
    step.function = function;
    step.kind = kind;
    step.n_in = static_cast<std::int32_t>(operands.size());
    for (std::size_t k = 0; k < operands.size(); ++k) {
      const MapKind own = kind_of(value_of(operands[k]));
      step.in[k] = slot_of(operands[k]);
      use(step.in[k]);
      step.by_rows |= kind == kMapFull && own != kMapFull && own != kMapOne;
      step.row_numbers[k] = own == kMapFull ? -1 : (own & kMapRows) != 0 ? 1 : 0;
    }
    for (std::size_t k = 0; k < operands.size(); ++k) {
      const MapKind own = kind_of(value_of(operands[k]));
      const bool moves = step.by_rows ? (own & kMapColumns) != 0 : own != kMapOne;
      if (k < 3) step.moving = static_cast<std::uint8_t>(step.moving | (moves ? 1U << k : 0U));
    }
    return step;
  }

  void add_step(std::size_t v) {
    const MapValue& value = list_.values[v];
    MapStep step = step_of(value.function, kind_of(value), value.in);
    step.out = slots_[v] = born(step.kind);
    laid_->steps.push_back(step);
  }

  // Neighbours go over the tile together where a loop makes both.
  void add_steps(const std::vector<std::size_t>& order) {
    for (std::size_t i = 0; i < order.size(); ++i) {
      const std::size_t next = i + 1 < order.size() ? order[i + 1] : order[i];
      if (!add_pair(order[i], next) && !add_pair(next, order[i]))
        add_step(order[i]);
      else
        ++i;
    }
  }

  bool add_pair(std::size_t first, std::size_t second) {
    const StepPair pair = pair_of(list_, first, second);
    if (pair.in.empty()) return false;
    MapStep step = step_of(pair.function, kind_of(list_.values[first]), pair.in);
    step.out = slots_[first] = born(step.kind);
    step.second = slots_[second] = born(step.kind);
    laid_->steps.push_back(step);
    return true;
  }

  void add_reductions(std::int32_t depth, MapStage& stage) {
    stage.reductions.begin = static_cast<std::int32_t>(laid_->reductions.size());
    for (std::size_t v = 0; v < list_.values.size(); ++v) {
      const MapValue& value = list_.values[v];
      if (reduced_at(value, depth) && value.pair != MapValue::of_products) add_reduction(v);
    }
    stage.reductions.end = static_cast<std::int32_t>(laid_->reductions.size());
  }

  void add_reduction(std::size_t v) {
    const MapValue& value = list_.values[v];
    MapReduction reduction;
    reduction.function = value.function;
    reduction.kind = kind_of(value);
    reduction.weighted = value.weighted;
    reduction.pair = value.pair == MapValue::of_d;
    reduction.summand = step_of(value.summand, kMapFull, value.in);
    const bool along = (reduction.kind & kMapColumns) == 0;
    // Sums down columns have a float for each beside their double.
    reduction.floats = along ? 2 * kMapLanes * room(reduction.kind) : 3 * room(reduction.kind);
    reduction.total = reserve(reduction.floats);
    reduction.out = slots_[v] = born(reduction.kind);
    if (reduction.pair) {
      reduction.pair_total = reserve(reduction.floats);
      reduction.pair_out = slots_[partner(v)] = born(reduction.kind);
    }
    laid_->reductions.push_back(reduction);
  }

  // The sum of products that is made beside a sum.
  std::size_t partner(std::size_t v) const {
    const MapValue& sum = list_.values[v];
    std::size_t other = 0;
    while (list_.values[other].pair != MapValue::of_products || !list_.values[other].needed ||
           list_.values[other].in != sum.in)
      ++other;
    return other;
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
      settle(step.second);
    }
    for (MapReduction& reduction : laid_->reductions) {
      for (std::int32_t& in : reduction.summand.in) settle(in);
      settle(reduction.out);
      settle(reduction.pair_out);
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
  std::vector<std::vector<std::int32_t>> over_;  // of each result, the operands in its bytes
  std::vector<std::int32_t> slots_;              // of each value, where it was computed last
  std::vector<bool> computed_;                   // in a tile of an earlier stage
  std::vector<Life> lives_;
};

}  // namespace

std::shared_ptr<const LaidMap> lay_out_map(MapListing list, const Operands& operands) {
  join_steps(list);
  const std::shared_ptr<LaidMap> laid = Layout(list, operands, kMapTile).take();
  constexpr Index kOther = kMapTile == kMapSmallTile ? kMapLargeTile : kMapSmallTile;
  const Index other = Layout(std::move(list), operands, kOther).take()->scratch_floats;
  laid->scratch_floats = std::max(laid->scratch_floats, other);
  return laid;
}

}  // namespace edge
