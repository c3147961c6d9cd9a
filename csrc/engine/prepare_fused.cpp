// A fused map: its program is read and checked value by value before it is laid out.
#include "engine/map_layout.h"

namespace edge {

namespace {

// The number of operands, 0 where there is no such function.
std::int32_t arity_of(std::int32_t function) {
  if (function >= 0 && function < kUnaryFunctions) return 1;
  if (function >= static_cast<std::int32_t>(MapFunction::div) &&
      function <= static_cast<std::int32_t>(MapFunction::less_equal))
    return 2;
  switch (static_cast<MapFunction>(function)) {
    case MapFunction::add:
    case MapFunction::sub:
    case MapFunction::mul:
    case MapFunction::relu_grad:
      return 2;
    case MapFunction::relu:
    case MapFunction::sum:
    case MapFunction::maximum:
    case MapFunction::minimum:
      return 1;
    case MapFunction::where:
      return 3;
    default:
      return 0;
  }
}

// The attributes one after the other.
class Reader {
 public:
  explicit Reader(Span<const std::int32_t> words) : words_(words) {}

  std::int32_t next(const char* what) {
    require(at_ < words_.size(), "BadAttribute",
            std::string("the program ends before its ") + what);
    return words_[at_++];
  }
  std::int32_t next_in(const char* what, std::int32_t low, std::int32_t high) {
    const std::int32_t value = next(what);
    require(value >= low && value <= high, "BadAttribute",
            std::string(what) + " must be in " + std::to_string(low) + ".." + std::to_string(high) +
                ", is " + std::to_string(value));
    return value;
  }
  bool done() const { return at_ == words_.size(); }

 private:
  Span<const std::int32_t> words_;
  std::size_t at_ = 0;
};

// Axes count from the left in the file; the box is filled up with axes of one place on the left.
std::uint32_t read_axes(Reader& reader, const MapListing& list, std::int32_t ndim,
                        const char* what) {
  const std::int32_t axes = reader.next_in(what, 0, (1 << ndim) - 1);
  return (static_cast<std::uint32_t>(axes) << (kMapAxes - ndim)) & list.whole();
}

void read_step(Reader& reader, MapListing& list) {
  MapValue value;
  value.step = true;
  const std::int32_t function = reader.next("function");
  const std::int32_t arity = arity_of(function);
  require(arity > 0, "BadAttribute", "no function has the number " + std::to_string(function));
  value.function = static_cast<MapFunction>(function);
  const auto known = static_cast<std::int32_t>(list.values.size());
  for (std::int32_t k = 0; k < arity; ++k) {
    value.in.push_back(reader.next_in("the value a step reads", 0, known - 1));
    const MapValue& operand = list.values[static_cast<std::size_t>(value.in.back())];
    value.axes |= operand.axes;
    value.depth = std::max(value.depth, operand.depth);
  }
  if (is_reduction(value.function)) {
    require(list.reduced != 0 && value.axes == list.whole(), "BadAttribute",
            "a reduction takes a value that has every axis of the box, and reduces one or more");
    value.axes &= ~list.reduced;
    ++value.depth;
  }
  list.values.push_back(std::move(value));
}

MapListing read_listing(Span<const std::int32_t> attributes) {
  Reader reader(attributes);
  MapListing list;
  list.n_operands = reader.next_in("the number of operands", 1, kMapOperands);
  const std::int32_t n_results = reader.next_in("the number of results", 1, kMapResults);
  list.n_constants = reader.next_in("the number of constants", 0, kMapConstants);
  const std::int32_t n_steps = reader.next_in("the number of steps", 1, kMapSteps);
  const std::int32_t ndim = reader.next_in("the number of axes", 1, kMapAxes);
  for (std::int32_t d = 0; d < ndim; ++d)
    list.dims[kMapAxes - ndim + d] = reader.next_in("an axis", 1, INT32_MAX);
  list.reduced = read_axes(reader, list, ndim, "the reduced axes");
  for (std::int32_t i = 0; i < list.n_operands; ++i) {
    MapValue operand;
    operand.axes = read_axes(reader, list, ndim, "the axes of an operand");
    list.values.push_back(operand);
  }
  for (std::int32_t i = 0; i < list.n_constants; ++i) {
    const std::int32_t bits = reader.next("constants");
    float value;
    std::memcpy(&value, &bits, sizeof value);
    list.constants.push_back(value);
    list.values.emplace_back();
  }
  for (std::int32_t i = 0; i < n_steps; ++i) read_step(reader, list);
  for (std::int32_t i = 0; i < n_results; ++i) {
    list.results.push_back(reader.next_in("the value of a result",
                                          list.n_operands + list.n_constants,
                                          static_cast<std::int32_t>(list.values.size()) - 1));
  }
  require(reader.done(), "BadAttribute", "words behind the end of the program");
  return list;
}

void check_size(const Operand& operand, std::uint64_t elements, const std::string& name) {
  require(operand.tensor != nullptr, "BadOperand", name + " must not be absent");
  require_dtype(operand, Dtype::float32, name.c_str());
  require(operand.tensor->elements == elements, "BadShape",
          name + " " + text(operand.tensor->dims) + " must have " + std::to_string(elements) +
              " elements");
}

void check_operands(const Operands& o, const MapListing& list) {
  require(
      o.n_inputs == static_cast<std::size_t>(list.n_operands) && o.n_outputs == list.results.size(),
      "BadOperand", "the program has another number of operands or results");
  const std::uint64_t all = list.elements(list.whole());
  bool whole = false;
  for (std::size_t i = 0; i < o.n_inputs; ++i) {
    check_size(o.in[i], list.elements(list.values[i].axes), "operand " + std::to_string(i));
    whole |= list.values[i].axes == list.whole();
  }
  for (std::size_t i = 0; i < o.n_outputs; ++i) {
    const std::uint32_t axes = list.values[static_cast<std::size_t>(list.results[i])].axes;
    const bool box = axes == list.whole();
    require(box || axes == (list.whole() & ~list.reduced), "BadAttribute",
            "a result has every axis of the box, or every one that is not reduced");
    check_size(o.out[i], box ? all : list.elements(axes), "result " + std::to_string(i));
    whole |= box;
    // A number of a group may be written while other groups, or this one's tiles, still read it.
    for (std::size_t k = 0; k < o.n_inputs && !box; ++k) {
      require(!share_bytes(*o.in[k].tensor, *o.out[i].tensor), "Overlap",
              "a result of groups shares bytes with an operand");
    }
  }
  require(whole, "BadShape", "no operand or result has the size of the box");
}

}  // namespace

Call prepare_map(const Operands& o, const Kernels& kernels) {
  MapListing list = read_listing(o.attributes);
  check_operands(o, list);
  mark_needed(list);
  const double work =
      static_cast<double>(list.elements(list.whole())) * static_cast<double>(list.values.size());
  const std::shared_ptr<const LaidMap> laid = lay_out_map(std::move(list), o);
  const auto kernel = kernels.map;
  return {[kernel, laid](const Worker& worker) { kernel(laid->program, worker); },
          bytes_of_floats(static_cast<std::uint64_t>(laid->scratch_floats)), work};
}

}  // namespace edge
