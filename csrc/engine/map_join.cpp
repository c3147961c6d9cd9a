// Several steps of a map as one, where the kernels have a loop that does them all.
#include <algorithm>

#include "engine/map_layout.h"

namespace edge {

namespace {

constexpr std::uint32_t kColumnAxis = 8;
using Values = std::vector<std::int32_t>;

// Every rule looks for a step and those that it reads. What nothing reads any more is dropped after
// each round, so that a later rule sees who reads what.
class StepJoiner {
 public:
  explicit StepJoiner(MapListing& list) : list_(list) {}

  void run() {
    each(&StepJoiner::join_products);
    each(&StepJoiner::join_affine);
    each(&StepJoiner::join_weighted_sum);
    each(&StepJoiner::join_sums);
    mark_needed(list_);
  }

 private:
  static std::size_t at(std::int32_t value) { return static_cast<std::size_t>(value); }

  MapValue& value_of(std::int32_t number) { return list_.values[at(number)]; }

  void each(void (StepJoiner::*rule)(MapValue&)) {
    count_readers();
    for (MapValue& value : list_.values) {
      if (value.needed && value.step) (this->*rule)(value);
    }
  }

  void count_readers() {
    mark_needed(list_);
    readers_.assign(list_.values.size(), 0);
    for (const MapValue& value : list_.values) {
      for (const std::int32_t in : value.in) readers_[at(in)] += value.needed ? 1 : 0;
    }
    for (const std::int32_t result : list_.results) ++readers_[at(result)];
  }

  bool is(std::int32_t number, MapFunction function) {
    return value_of(number).step && value_of(number).function == function;
  }

  // A step of this function that nothing else reads.
  bool own(std::int32_t number, MapFunction function, std::uint32_t axes) {
    return is(number, function) && value_of(number).axes == axes && readers_[at(number)] == 1;
  }

  bool whole(std::int32_t number) { return value_of(number).axes == list_.whole(); }

  // Of an element of its own in every place of a row.
  bool moves(std::int32_t number) { return whole(number) && (list_.whole() & kColumnAxis) != 0; }

  // One number for each row, or for all.
  bool of_rows(std::int32_t number) { return (value_of(number).axes & kColumnAxis) == 0; }

  void join_products(MapValue& value) {
    if (value.function == MapFunction::add && !join_product(value, 0, MapFunction::multiply_add))
      join_product(value, 1, MapFunction::multiply_add);
    else if (value.function == MapFunction::sub &&
             !join_product(value, 0, MapFunction::multiply_sub))
      join_product(value, 1, MapFunction::sub_multiply);
    else if (value.function == MapFunction::relu)
      join_relu(value);
    else if (value.function == MapFunction::relu_grad)
      join_clip_grad(value);
    else if (value.function == MapFunction::sum)
      join_summand(value);
  }

  bool join_product(MapValue& value, std::size_t side, MapFunction function) {
    const std::int32_t number = value.in[side], other = value.in[1 - side];
    if (!own(number, MapFunction::mul, value.axes)) return false;
    value.in = {value_of(number).in[0], value_of(number).in[1], other};
    value.function = function;
    return true;
  }

  void join_relu(MapValue& value) {
    if (!own(value.in[0], MapFunction::multiply_add, value.axes)) return;
    value.in = Values(value_of(value.in[0]).in);
    value.function = MapFunction::multiply_add_relu;
  }

  // relu_grad(d * less(y, limit), y)
  void join_clip_grad(MapValue& value) {
    const std::int32_t number = value.in[0], y = value.in[1];
    if (!own(number, MapFunction::mul, value.axes)) return;
    const Values factors = value_of(number).in;
    for (std::size_t side = 0; side < 2; ++side) {
      const MapValue& less = value_of(factors[side]);
      if (!own(factors[side], MapFunction::less, less.axes) || less.in[0] != y) continue;
      value.in = {factors[1 - side], y, less.in[1]};
      value.function = MapFunction::clip_grad;
      return;
    }
  }

  void join_summand(MapValue& sum) {
    const std::int32_t weight = take_weight(sum);
    if (own(sum.in[0], MapFunction::mul, list_.whole())) {
      const Values factors = value_of(sum.in[0]).in;
      if (whole(factors[0]) && whole(factors[1])) {
        sum.in = factors;
        sum.summand = MapFunction::mul;
      }
    }
    if (sum.weighted) sum.in.push_back(weight);
  }

  // Has a sum read the other factor of a product with what is one number in a tile; that number.
  std::int32_t take_weight(MapValue& sum) {
    if (!own(sum.in[0], MapFunction::mul, list_.whole())) return -1;
    const Values factors = value_of(sum.in[0]).in;
    for (std::size_t side = 0; side < 2; ++side) {
      const std::int32_t weight = factors[side];
      const bool one = (value_of(weight).axes >> 2) == 0;
      if (whole(weight) || !one || !whole(factors[1 - side])) continue;
      sum.weighted = true;
      sum.in = {factors[1 - side]};
      return weight;
    }
    return -1;
  }

  // The operands of relu(x * a + b) with numbers a and b of rows; none for another value. x comes
  // first.
  Values affine(std::int32_t number) {
    if (!is(number, MapFunction::multiply_add_relu)) return {};
    Values in = value_of(number).in;
    if (!moves(in[0])) std::swap(in[0], in[1]);
    return moves(in[0]) && of_rows(in[1]) && of_rows(in[2]) ? in : Values{};
  }

  // What follows from an affine function and its relu computes them itself, whoever else does.
  void join_affine(MapValue& value) {
    if (value.function == MapFunction::min && of_rows(value.in[1])) {
      Values in = affine(value.in[0]);
      if (in.empty()) return;
      in.push_back(value.in[1]);
      value.in = in;
      value.function = MapFunction::affine_clip;
      return;
    }
    const bool clip = value.function == MapFunction::clip_grad;
    if (!clip && value.function != MapFunction::relu_grad) return;
    Values in = affine(value.in[1]);
    if (in.empty() || !moves(value.in[0]) || (clip && !of_rows(value.in[2]))) return;
    in.insert(in.begin(), value.in[0]);
    if (clip) in.push_back(value.in[2]);
    value.in = in;
    value.function = clip ? MapFunction::affine_clip_grad : MapFunction::affine_relu_grad;
  }

  // (d * s + x * t) + u, with numbers s, t and u of rows.
  void join_weighted_sum(MapValue& value) {
    if (value.function != MapFunction::add || !whole_row(value)) return;
    for (std::size_t side = 0; side < 2; ++side) {
      const std::int32_t u = value.in[1 - side];
      if (!own(value.in[side], MapFunction::multiply_add, value.axes) || !of_rows(u)) continue;
      Values first = value_of(value.in[side]).in;
      if (!own(first[2], MapFunction::mul, value.axes)) continue;
      Values second = value_of(first[2]).in;
      if (!moves(first[0])) std::swap(first[0], first[1]);
      if (!moves(second[0])) std::swap(second[0], second[1]);
      if (!moves(first[0]) || !moves(second[0]) || !of_rows(first[1]) || !of_rows(second[1]))
        continue;
      value.in = {first[0], first[1], second[0], second[1], u};
      value.function = MapFunction::weighted_sum;
      return;
    }
  }

  bool whole_row(const MapValue& value) const {
    return value.axes == list_.whole() && (value.axes & kColumnAxis) != 0;
  }

  void join_sums(MapValue& sum) {
    if (sum.function != MapFunction::sum || sum.pair != MapValue::alone) return;
    if (sum.summand == MapFunction::mul) join_square(sum);
    if (sum.summand == MapFunction::element && !sum.weighted) join_pair(sum);
  }

  // A sum of (x - a)^2 takes the difference itself.
  void join_square(MapValue& sum) {
    if (sum.in[0] != sum.in[1] || !is(sum.in[0], MapFunction::sub)) return;
    const MapValue& difference = value_of(sum.in[0]);
    if (!moves(difference.in[0]) || !number_of_sum(difference.in[1])) return;
    sum.in[0] = difference.in[0];
    sum.in[1] = difference.in[1];
    sum.summand = MapFunction::square_difference;
  }

  // The same for all that a sum adds up, and no number of columns.
  bool number_of_sum(std::int32_t number) {
    return of_rows(number) && list_.of_group(value_of(number));
  }

  // A sum of d and one of d * x go over them once. If d is the gradient through an activation, and
  // nothing but these and the weighted sum that follows needs it, each computes it.
  void join_pair(MapValue& sum) {
    const std::int32_t d = sum.in[0];
    if ((sum.axes & kColumnAxis) != 0 || !moves(d)) return;
    for (MapValue& products : list_.values) {
      const bool other = products.needed && products.function == MapFunction::sum &&
                         products.summand == MapFunction::mul && !products.weighted &&
                         products.depth == sum.depth;
      if (!other || products.in[0] == products.in[1]) continue;
      if (products.in[0] != d && products.in[1] != d) continue;
      const std::int32_t x = products.in[products.in[0] == d ? 1 : 0];
      sum.in = {d};
      if (takes_apart(d)) take_apart(d, sum);
      sum.in.push_back(x);
      sum.pair = MapValue::of_d;
      products.in = sum.in;
      products.summand = sum.summand;
      products.pair = MapValue::of_products;
      return;
    }
  }

  bool takes_apart(std::int32_t d) {
    const MapValue& value = value_of(d);
    if (value.function != MapFunction::affine_relu_grad &&
        value.function != MapFunction::affine_clip_grad)
      return false;
    for (std::size_t k = 2; k < value.in.size(); ++k) {
      if (!number_of_sum(value.in[k])) return false;
    }
    std::int32_t weighted = 0;
    for (const MapValue& reader : list_.values)
      weighted += reader.needed && reads_weighted(reader, d) ? 1 : 0;
    return readers_[at(d)] == weighted + 2;
  }

  static bool reads_weighted(const MapValue& reader, std::int32_t d) {
    return reader.function == MapFunction::weighted_sum && reader.in[0] == d;
  }

  void take_apart(std::int32_t d, MapValue& sum) {
    const MapValue& value = value_of(d);
    const bool clip = value.function == MapFunction::affine_clip_grad;
    sum.in = value.in;
    sum.summand = value.function;
    for (MapValue& reader : list_.values) {
      if (!reader.needed || !reads_weighted(reader, d)) continue;
      reader.in.erase(reader.in.begin());
      reader.in.insert(reader.in.begin(), value.in.begin(), value.in.end());
      reader.function = clip ? MapFunction::weighted_clip_grad : MapFunction::weighted_relu_grad;
    }
  }

  MapListing& list_;
  std::vector<std::int32_t> readers_;
};

// Of a relu or a clip of an affine function: x, a, b, and the limit of a clip; none for another
// step.
Values activation_of(const MapListing& list, const MapValue& value) {
  if (value.function == MapFunction::affine_clip) return value.in;
  if (value.function != MapFunction::multiply_add_relu) return {};
  Values in = value.in;
  const auto axes = [&](std::size_t k) {
    return list.values[static_cast<std::size_t>(in[k])].axes;
  };
  if ((axes(0) & kColumnAxis) == 0) std::swap(in[0], in[1]);
  const bool of_rows = ((axes(1) | axes(2)) & kColumnAxis) == 0;
  return axes(0) == list.whole() && (axes(0) & kColumnAxis) != 0 && of_rows ? in : Values{};
}

}  // namespace

StepPair pair_of(const MapListing& list, std::size_t first, std::size_t second) {
  const MapValue& value = list.values[first];
  Values in = activation_of(list, list.values[second]);
  if (in.empty()) return {};
  const bool clip = in.size() == 4;
  const MapFunction gradient =
      clip ? MapFunction::weighted_clip_grad : MapFunction::weighted_relu_grad;
  if (value.function == gradient && std::equal(in.begin(), in.end(), value.in.begin() + 1))
    return {gradient, value.in};
  if (value.function != MapFunction::sub || in[0] != static_cast<std::int32_t>(first)) return {};
  const auto axes = [&](std::size_t k) {
    return list.values[static_cast<std::size_t>(value.in[k])].axes;
  };
  if (axes(0) != list.whole() || (axes(1) & kColumnAxis) != 0) return {};
  in.insert(in.begin() + 1, value.in[1]);
  in[0] = value.in[0];
  return {clip ? MapFunction::centred_clip : MapFunction::centred_relu, in};
}

void mark_needed(MapListing& list) {
  for (MapValue& value : list.values) value.needed = false;
  for (const std::int32_t result : list.results)
    list.values[static_cast<std::size_t>(result)].needed = true;
  for (std::size_t v = list.values.size(); v-- > 0;) {
    if (!list.values[v].needed) continue;
    for (const std::int32_t in : list.values[v].in)
      list.values[static_cast<std::size_t>(in)].needed = true;
  }
}

void join_steps(MapListing& list) { StepJoiner(list).run(); }

}  // namespace edge
