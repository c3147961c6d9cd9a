// Fuzzes the plan reader and one step: fuzz_plan [seconds [seed [plan]]], the last to see one
// plan again.
//
// Half of the plans are changed copies of a good one, half are single operations of random
// geometry. survive.h says how what the reader lets through runs.
#include <chrono>
#include <cstdlib>
#include <vector>

#include "survive.h"

namespace {

using build::Bytes;
using edge::Dtype;
using edge::Role;
using fuzz::Random;

constexpr std::uint16_t kMap = 40;  // a program may magnify rounding without a bound
constexpr std::uint16_t kSampledSoftmax = 43;

// A window along one axis, and the size it leaves.
struct Window {
  std::uint32_t size, kernel, stride, before, after, dilation, outputs;
};
Window window(Random& random, bool pool) {
  while (true) {
    Window w{random.size(),
             1 + random.below(5),
             1 + random.below(3),
             random.below(4),
             random.below(4),
             1 + random.below(3),
             0};
    if (pool && random.once_in(2)) w = {w.size, 2, 2, 0, 0, 1, 0};
    const std::uint32_t extent = (w.kernel - 1) * w.dilation + 1,
                        padded = w.size + w.before + w.after;
    if (padded < extent) continue;
    w.outputs = (padded - extent) / w.stride + 1;
    return w;
  }
}

std::vector<std::int32_t> attributes_of(const Window& v, const Window& h, std::uint32_t a,
                                        std::uint32_t b) {
  std::vector<std::int32_t> out;
  for (const std::uint32_t word :
       {v.stride, h.stride, v.before, h.before, v.after, h.after, v.dilation, h.dilation, a, b})
    out.push_back(static_cast<std::int32_t>(word));
  return out;
}

void add_conv(build::PlanBuilder& plan, Random& random, std::uint16_t code) {
  Window v = window(random, false);
  const Window h = window(random, false);
  if (random.once_in(3)) v = {1, 1, 1, 0, 0, 1, 1};
  const std::uint32_t groups = random.once_in(3) ? 1 + random.below(3) : 1, images = random.size();
  const std::uint32_t channels = 1 + random.below(9), filters = 1 + random.below(20);
  const auto x = plan.tensor("x", {images, groups * channels, v.size, h.size}, Role::trained);
  const auto w = plan.tensor("w", {groups * filters, channels, v.kernel, h.kernel}, Role::trained);
  const auto y = plan.tensor("y", {images, groups * filters, v.outputs, h.outputs}, Role::trained);
  const auto bias = plan.tensor("bias", {groups * filters}, Role::frozen);
  const bool forward = code == 2;
  const auto attributes = attributes_of(v, h, groups, forward ? random.below(2) : 0);
  if (forward) plan.op(2, {x, w, random.once_in(2) ? bias : edge::kAbsent}, {y}, attributes);
  if (code == 3) plan.op(3, {y, w}, {x}, attributes);
  if (code == 4) plan.op(4, {y, x}, {w}, attributes);
}

void add_pool(build::PlanBuilder& plan, Random& random, std::uint16_t code) {
  const Window v = window(random, true), h = window(random, true);
  const std::uint32_t images = random.size(), channels = 1 + random.below(5);
  const auto x = plan.tensor("x", {images, channels, v.size, h.size}, Role::trained);
  const std::vector<std::uint32_t> places = {images, channels, v.outputs, h.outputs};
  const auto y = plan.tensor("y", places, Role::trained);
  const auto index = plan.tensor("index", places, Role::trained, Dtype::uint8);
  auto attributes = attributes_of(v, h, v.kernel, h.kernel);
  if (code >= 9) attributes.push_back(static_cast<std::int32_t>(random.below(2)));
  if (code == 7) plan.op(7, {x}, {y, index}, attributes);
  if (code == 8) plan.op(8, {y, index}, {x}, attributes);
  if (code == 9) plan.op(9, {x}, {y}, attributes);
  if (code == 10) plan.op(10, {y}, {x}, attributes);
}

void add_gemm(build::PlanBuilder& plan, Random& random) {
  const std::uint32_t m = random.size(), n = random.size(), k = random.size() * random.size();
  const std::uint32_t trans_a = random.below(2), trans_b = random.below(2);
  const auto shape = [](std::uint32_t rows, std::uint32_t columns, std::uint32_t transposed) {
    return transposed != 0 ? std::vector<std::uint32_t>{columns, rows}
                           : std::vector<std::uint32_t>{rows, columns};
  };
  const auto a = plan.tensor("a", shape(m, k, trans_a), Role::frozen);
  const auto b = plan.tensor("b", shape(k, n, trans_b), Role::frozen);
  const auto bias = plan.tensor("bias", {n}, Role::frozen),
             c = plan.tensor("c", {m, n}, Role::trained);
  plan.op(1, {a, b, random.once_in(2) ? bias : edge::kAbsent}, {c},
          {static_cast<std::int32_t>(trans_a), static_cast<std::int32_t>(trans_b),
           static_cast<std::int32_t>(random.below(2))});
}

void add_array(build::PlanBuilder& plan, Random& random, std::uint16_t code) {
  std::vector<std::uint32_t> a, b, c, summed, turned;
  std::vector<std::int32_t> order;
  const std::uint32_t ndim = random.below(5), axes = random.below(1U << ndim);
  for (std::uint32_t d = 0; d < ndim; ++d) {
    c.push_back(1 + random.below(9));
    a.push_back(random.once_in(3) ? 1 : c[d]);
    b.push_back(a[d] == c[d] && random.once_in(3) ? 1 : c[d]);
    if ((axes >> d & 1U) == 0) summed.push_back(c[d]);
    order.push_back(static_cast<std::int32_t>(d));
  }
  for (std::uint32_t d = 0; d < ndim; ++d) std::swap(order[d], order[random.below(ndim)]);
  for (const std::int32_t d : order) turned.push_back(c[static_cast<std::size_t>(d)]);
  const auto first = plan.tensor("a", a, Role::frozen), second = plan.tensor("b", b, Role::frozen);
  const auto full = plan.tensor("c", c, Role::trained);
  if (code == 14) {
    plan.op(14, {full}, {plan.tensor("sum", summed, Role::trained)},
            {static_cast<std::int32_t>(axes), 0x3F000000});
  } else if (code == 15) {
    plan.op(15, {full}, {plan.tensor("turned", turned, Role::trained)}, order);
  } else {
    plan.op(code, {first, second}, {full});
  }
}

// Functions, selections and reductions of random shapes.
void add_map(build::PlanBuilder& plan, Random& random, std::uint16_t code) {
  const std::uint32_t n = random.size(), m = random.size(), k = 1 + random.below(n);
  const auto x = plan.tensor("x", {n, m}, Role::frozen),
             row = plan.tensor("row", {m}, Role::frozen);
  const auto y = plan.tensor("y", {n, m}, Role::trained),
             column = plan.tensor("column", {n, 1}, Role::frozen);
  const auto best = plan.tensor("best", {k, m}, Role::trained),
             summed = plan.tensor("summed", {m}, Role::trained);
  const auto places = plan.tensor("places", {k, m}, Role::trained, Dtype::int32),
             place = plan.tensor("place", {m}, Role::trained, Dtype::int32);
  const auto side = static_cast<std::int32_t>(random.below(2));
  if (code == 20) plan.op(20, {x}, {y}, {static_cast<std::int32_t>(random.below(15))});
  if (code == 21) plan.op(21, {column, row}, {y}, {static_cast<std::int32_t>(random.below(7))});
  if (code == 22) plan.op(22, {x, column, row}, {y});
  if (code == 23) plan.op(23, {x}, {summed}, {side, 1});
  if (code == 24) plan.op(24, {x}, {place}, {side, 0});
  if (code == 30) plan.op(30, {x}, {y}, {side, static_cast<std::int32_t>(random.below(2)), side});
  if (code == 31) plan.op(31, {x}, {best, places}, {side, 0, static_cast<std::int32_t>(k)});
  if (code == 41) {
    const auto seed = plan.tensor("seed", {}, Role::scalar),
               step = plan.tensor("step", {}, Role::state);
    plan.op(41, {seed, step}, {y}, {side, static_cast<std::int32_t>(random.below(99))});
  }
  if (code == 28) {
    const Dtype kinds[] = {Dtype::float32, Dtype::int32, Dtype::uint8};
    const auto from = plan.tensor("from", {n, m}, Role::frozen, kinds[random.below(3)]);
    plan.op(28, {from}, {plan.tensor("to", {n, m}, Role::trained, kinds[random.below(3)])});
  }
}

// A part of a matrix of n x m to another place, backwards or forwards; rows by an index; products
// of a batch.
void add_move(build::PlanBuilder& plan, Random& random, std::uint16_t code) {
  const std::uint32_t n = random.size(), m = random.size(), k = random.size();
  const auto whole = plan.tensor("whole", {n, m}, Role::trained),
             part = plan.tensor("part", {k, m}, Role::trained);
  const auto index = plan.tensor("index", {k}, Role::trained, Dtype::int32);
  const auto base = plan.tensor("base", {k, m}, Role::frozen);
  const std::uint32_t rows = 1 + random.below(n < k ? n : k), columns = 1 + random.below(m);
  const auto step = static_cast<std::int32_t>(m);
  if (code == 25) {
    const bool back = random.once_in(2);
    const auto last = static_cast<std::int32_t>(columns) - 1;
    plan.op(25, {whole, random.once_in(2) ? base : edge::kAbsent}, {part},
            {0x3F000000, back ? last : 0, step - 1 - last, static_cast<std::int32_t>(rows), step,
             step, last + 1, back ? -1 : 1, 1});
  }
  if (code == 26) plan.op(26, {whole, index}, {part}, {0, 0});
  if (code == 27) plan.op(27, {part, index}, {whole}, {0, 0});
  if (code == 29) {
    const std::uint32_t batch = 1 + random.below(4), trans = random.below(2);
    const auto a = plan.tensor("a", {batch, n, k}, Role::frozen);
    const auto b = plan.tensor(
        "b", trans != 0 ? std::vector<std::uint32_t>{1, m, k} : std::vector<std::uint32_t>{1, k, m},
        Role::frozen);
    plan.op(29, {a, b}, {plan.tensor("c", {batch, n, m}, Role::trained)},
            {0, static_cast<std::int32_t>(trans)});
  }
}

// A fused map: a random program over a random box, whose operands have some of its axes.
void add_program(build::PlanBuilder& plan, Random& random) {
  constexpr std::int32_t kFunctions[] = {0,  4,  5,  8,  14, 32, 33, 34, 35, 36, 37,
                                         48, 49, 50, 51, 52, 53, 64, 64, 65, 66};
  const std::uint32_t ndim = 1 + random.below(4), all = (1U << ndim) - 1;
  std::vector<std::uint32_t> box, inputs, outputs, axes_of;
  for (std::uint32_t d = 0; d < ndim; ++d)
    box.push_back(d + 1 == ndim && random.once_in(3) ? 500 + random.below(600) : random.size());
  const std::uint32_t reduced = random.once_in(3) ? 0 : random.below(all + 1);
  const auto tensor = [&](std::uint32_t axes, Role role) {
    std::vector<std::uint32_t> dims;
    for (std::uint32_t d = 0; d < ndim; ++d)
      if ((axes >> d & 1U) != 0) dims.push_back(box[d]);
    return plan.tensor("t" + std::to_string(inputs.size() * 8 + outputs.size()), dims, role);
  };
  const std::uint32_t n_operands = 1 + random.below(4), n_steps = 1 + random.below(9);
  std::vector<std::int32_t> words, steps, stored;
  for (std::uint32_t i = 0; i < n_operands; ++i) {
    axes_of.push_back(i == 0 ? all : random.below(all + 1));
    inputs.push_back(tensor(axes_of[i], Role::frozen));
    words.push_back(static_cast<std::int32_t>(axes_of[i]));
  }
  axes_of.push_back(0);
  words.push_back(0x3F000000);
  for (std::uint32_t step = 0; step < n_steps; ++step) {
    const std::int32_t function = random.of(kFunctions);
    const bool reduction = function >= 64;
    const std::uint32_t arity = reduction || function < 32 || function == 51 ? 1
                                : function == 53                             ? 3
                                                                             : 2;
    std::uint32_t axes = 0;
    steps.push_back(function);
    for (std::uint32_t k = 0; k < arity; ++k) {
      const std::uint32_t from = random.once_in(3) ? 0 : random.below(axes_of.size());
      steps.push_back(static_cast<std::int32_t>(from));
      axes |= axes_of[from];
    }
    axes_of.push_back(reduction ? axes & ~reduced : axes);
    if (axes_of.back() != all && axes_of.back() != (all & ~reduced)) continue;
    if (outputs.size() == 8 || (step + 1 < n_steps && random.once_in(2))) continue;
    outputs.push_back(tensor(axes_of.back(), Role::trained));
    stored.push_back(static_cast<std::int32_t>(axes_of.size()) - 1);
  }
  std::vector<std::int32_t> program = {
      static_cast<std::int32_t>(n_operands), static_cast<std::int32_t>(outputs.size()), 1,
      static_cast<std::int32_t>(n_steps), static_cast<std::int32_t>(ndim)};
  program.insert(program.end(), box.begin(), box.end());
  program.push_back(static_cast<std::int32_t>(reduced));
  for (const auto& part : {words, steps, stored})
    program.insert(program.end(), part.begin(), part.end());
  plan.op(kMap, inputs, outputs, program);
}

void add_sampled_softmax(build::PlanBuilder& plan, Random& random) {
  const std::uint32_t batch = random.size(), classes = random.size() * random.size();
  const std::uint32_t width = random.size(), first = random.below(4);
  const bool slice = random.once_in(3);
  const auto features = plan.tensor("features", {batch, width}, Role::frozen);
  const auto rows = plan.tensor("rows", {classes, width}, Role::frozen);
  const std::uint32_t all = slice ? first + batch + random.below(3) : batch;
  const auto labels = plan.tensor("labels", {all}, Role::batch, Dtype::int32);
  const auto correction = plan.tensor("correction", {classes}, Role::frozen);
  const auto loss = plan.tensor("loss", {}, Role::output);
  const auto d_features = plan.tensor("d_features", {batch, width}, Role::trained);
  const auto d_rows = plan.tensor("d_rows", {classes, width}, Role::trained);
  // The gradient of a short vector's direction is as large as the vector is short.
  const float scale = width > 4 && random.once_in(2) ? 3.0F : 0.0F;
  std::vector<std::int32_t> attributes(2);
  std::memcpy(attributes.data(), &scale, 4);
  attributes[1] = static_cast<std::int32_t>(random.once_in(2) ? random.below(classes + 1) : 0);
  if (slice) attributes.push_back(static_cast<std::int32_t>(first));
  plan.op(kSampledSoftmax, {features, labels, rows, random.once_in(2) ? correction : edge::kAbsent},
          {loss, d_features, d_rows}, attributes);
}

// One operation of random geometry, nearly always a good one.
Bytes one_operation(Random& random, std::uint16_t code) {
  build::PlanBuilder plan;
  if (code == 1) add_gemm(plan, random);
  if (code >= 2 && code <= 4) add_conv(plan, random, code);
  if (code >= 7 && code <= 10) add_pool(plan, random, code);
  if (code >= 11 && code <= 15) add_array(plan, random, code);
  if (code == kMap) add_program(plan, random);
  if (code == kSampledSoftmax) add_sampled_softmax(plan, random);
  if ((code >= 20 && code <= 24) || code == 28 || code == 30 || code == 31 || code == 41)
    add_map(plan, random, code);
  if ((code >= 25 && code <= 27) || code == 29) add_move(plan, random, code);
  return plan.seal(fuzz::kMostBytes);
}

unsigned long long seed = 1, plan_number = 0;

void say_where() { std::fprintf(stderr, "fuzz_plan 1 %llu %llu\n", seed, plan_number); }

// Whether plan `plan_number` of the seed ran.
bool run_one(const Bytes& network) {
  const std::uint64_t own = seed * 1000003 + plan_number;
  const int before = check::failures;
  Random random(own);
  const bool generated = random.once_in(2);
  const std::uint16_t code = random.of<std::uint16_t>(
      {1,  2,  2,  3,  3,  4,  4,  7,  8,  9,  10, 11, 12, 13, 14, 15, 20,
       21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 40, 40, 40, 41, 43, 43});
  Bytes plan = generated ? one_operation(random, code) : fuzz::changed(network, random);
  const bool spoilt = generated && random.once_in(3);
  if (spoilt) plan = fuzz::changed(plan, random);
  const bool ran = fuzz::survives(plan, own, generated && !spoilt && code != kMap);
  if (check::failures != before) say_where();
  return ran;
}

}  // namespace

// Where a sanitizer is linked in it tells which plan it died of.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 5.0;
  if (argc > 2) seed = std::strtoull(argv[2], nullptr, 10);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_where);
  const Bytes network = build::small_network(3);
  if (argc > 3) {
    plan_number = std::strtoull(argv[3], nullptr, 10);
    return run_one(network) ? check::finish() : 1;
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::uint64_t ran = 0;
  for (; std::chrono::steady_clock::now() < end; ++plan_number) ran += run_one(network) ? 1 : 0;
  std::printf("%llu plans, %llu ran\n", plan_number, static_cast<unsigned long long>(ran));
  CHECK(ran > 0);
  return check::finish();
}
