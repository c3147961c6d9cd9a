// Operations that compute: elementwise functions, reductions that are no sums, batched products,
// updates.
#include <algorithm>

#include "engine/prepare.h"

namespace edge {

namespace {

Index extent_from_right(const Dims& dims, std::size_t place) {
  return place < dims.size() ? dims[dims.size() - 1 - place] : 1;
}

// One dimension of the walk, from the right; merged with its inner neighbour where every operand
// walks through both alike.
void push_dim(BroadcastArgs& args, Index n, const Index* strides, std::size_t operands) {
  bool merges = args.ndim > 0;
  for (std::size_t k = 0; k < operands && merges; ++k) {
    merges = strides[k] == args.strides[k][args.ndim - 1] * args.dims[args.ndim - 1];
  }
  if (merges) {
    args.dims[args.ndim - 1] *= n;
    return;
  }
  for (std::size_t k = 0; k < operands; ++k) args.strides[k][args.ndim] = strides[k];
  args.dims[args.ndim++] = n;
}

BroadcastArgs broadcast_args(const Operands& o, std::size_t operands) {
  const Dims& out = o.out[0].tensor->dims;
  BroadcastArgs args;
  Index sizes[3] = {1, 1, 1};
  for (std::size_t place = 0; place < out.size(); ++place) {
    const Index n = extent_from_right(out, place);
    Index strides[3] = {};
    bool whole = false;
    for (std::size_t k = 0; k < operands; ++k) {
      const Index extent = extent_from_right(o.in[k].tensor->dims, place);
      require(extent == n || extent == 1, "BadShape",
              "shape " + text(o.in[k].tensor->dims) + " does not broadcast to " + text(out));
      whole = whole || extent == n;
      strides[k] = extent == 1 ? 0 : sizes[k];
      sizes[k] *= extent;
    }
    require(whole, "BadShape", "no operand has the extent of the output " + text(out));
    if (n > 1) push_dim(args, n, strides, operands);
  }
  if (args.ndim == 0) args.dims[args.ndim++] = 1;
  std::reverse(args.dims, args.dims + args.ndim);
  for (auto& strides : args.strides) std::reverse(strides, strides + args.ndim);
  return args;
}

BroadcastArgs checked_broadcast(const Operands& o, std::size_t operands) {
  require_floats({&o.in[0], &o.in[1], &o.in[2], &o.out[0]});
  for (std::size_t k = 0; k < operands; ++k) {
    require(o.in[k].tensor->dims.size() <= o.out[0].tensor->dims.size(), "BadShape",
            "the output has fewer dimensions than an input");
  }
  BroadcastArgs args = broadcast_args(o, operands);
  for (std::size_t k = 0; k < operands; ++k) args.in[k] = floats_in(o.in[k]);
  args.out = floats_out(o.out[0]);
  return args;
}

// Without the axis.
Dims without(const Dims& dims, std::int32_t axis) {
  Dims rest = dims;
  rest.erase(rest.begin() + axis);
  return rest;
}

Element element_of(const Operand& operand) {
  return operand.tensor->dtype == Dtype::float32 ? Element::float32
         : operand.tensor->dtype == Dtype::int32 ? Element::int32
                                                 : Element::uint8;
}

float in_unit(std::int32_t bits, const char* name) {
  const float value = finite(bits, name);
  require(value >= 0.0F && value < 1.0F, "BadAttribute",
          std::string(name) + " must be in [0, 1), is " + std::to_string(value));
  return value;
}

}  // namespace

AxisView along(const Operand& operand, std::int32_t axis) {
  const Dims& dims = operand.tensor->dims;
  require(axis >= 0 && static_cast<std::size_t>(axis) < dims.size(), "BadAttribute",
          "axis " + std::to_string(axis) + " is none of " + text(dims));
  AxisView view;
  const auto at = static_cast<std::size_t>(axis);
  view.size = dims[at];
  for (std::size_t d = 0; d < at; ++d) view.outer *= dims[d];
  for (std::size_t d = at + 1; d < dims.size(); ++d) view.inner *= dims[d];
  return view;
}

Call prepare_unary(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.out[0];
  require_floats({&x, &y});
  require_dims(y, x.tensor->dims, "y");
  const auto function =
      static_cast<UnaryFunction>(choice(o.attributes[0], kUnaryFunctions, "the function"));
  const MapArgs args{floats_in(x), floats_out(y), elements(x), function};
  return call_of(kernels.unary, args, 8.0 * static_cast<double>(args.size));
}

Call prepare_binary(const Operands& o, const Kernels& kernels) {
  BroadcastArgs args = checked_broadcast(o, 2);
  args.function =
      static_cast<BinaryFunction>(choice(o.attributes[0], kBinaryFunctions, "the function"));
  return call_of(kernels.binary, args, static_cast<double>(o.out[0].tensor->elements));
}

Call prepare_where(const Operands& o, const Kernels& kernels) {
  const BroadcastArgs args = checked_broadcast(o, 3);
  return call_of(kernels.where, args, static_cast<double>(o.out[0].tensor->elements));
}

Call prepare_minmax(const Operands& o, const Kernels& kernels) {
  MinmaxArgs args;
  args.smallest = flag(o.attributes[0], "smallest");
  args.reduce = checked_reduction(o.in[0], o.out[0], o.attributes[1]);
  return call_of(kernels.minmax, args, static_cast<double>(o.in[0].tensor->elements));
}

Call prepare_argminmax(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &index = o.out[0];
  require_floats({&x});
  require_dtype(index, Dtype::int32, "index");
  ArgminmaxArgs args;
  args.smallest = flag(o.attributes[0], "smallest");
  const AxisView view = along(x, o.attributes[1]);
  require_dims(index, without(x.tensor->dims, o.attributes[1]), "index");
  args.x = floats_in(x);
  args.index = reinterpret_cast<std::int32_t*>(index.data);
  args.outer = view.outer;
  args.size = view.size;
  args.inner = view.inner;
  require(view.size <= INT32_MAX, "BadShape", "the axis is longer than an int32 can name");
  return call_of(kernels.argminmax, args, static_cast<double>(x.tensor->elements));
}

Call prepare_topk(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &values = o.out[0], &index = o.out[1];
  require_floats({&x, &values});
  require_dtype(index, Dtype::int32, "index");
  const AxisView view = along(x, o.attributes[1]);
  TopkArgs args;
  args.smallest = flag(o.attributes[0], "smallest");
  args.k = o.attributes[2];
  require(args.k >= 1 && args.k <= view.size && view.size <= INT32_MAX, "BadAttribute",
          "k must be in 1.." + std::to_string(view.size) + ", is " + std::to_string(args.k));
  Dims wanted = x.tensor->dims;
  wanted[static_cast<std::size_t>(o.attributes[1])] = args.k;
  require_dims(values, wanted, "values");
  require_dims(index, wanted, "index");
  args.x = floats_in(x);
  args.values = floats_out(values);
  args.index = reinterpret_cast<std::int32_t*>(index.data);
  args.outer = view.outer;
  args.size = view.size;
  args.inner = view.inner;
  return call_of(kernels.topk, args, 2.0 * static_cast<double>(x.tensor->elements));
}

Call prepare_cumsum(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.out[0];
  require_floats({&x, &y});
  require_dims(y, x.tensor->dims, "y");
  const AxisView view = along(x, o.attributes[0]);
  const CumsumArgs args{floats_in(x),
                        floats_out(y),
                        view.outer,
                        view.size,
                        view.inner,
                        flag(o.attributes[1], "exclusive"),
                        flag(o.attributes[2], "reverse")};
  return call_of(kernels.cumsum, args, static_cast<double>(x.tensor->elements));
}

Call prepare_cast(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.out[0];
  require_dims(y, x.tensor->dims, "y");
  const CastArgs args{x.data, y.data, element_of(x), element_of(y), elements(x)};
  return call_of(kernels.cast, args, static_cast<double>(args.size));
}

Call prepare_matmul(const Operands& o, const Kernels& kernels) {
  const Operand &a = o.in[0], &b = o.in[1], &c = o.out[0];
  require_floats({&a, &b, &c});
  const std::size_t ndim = c.tensor->dims.size();
  require(ndim >= 3, "BadShape", "c has no batch dimension; that is a gemm");
  require_ndim(a, ndim, "a");
  require_ndim(b, ndim, "b");
  MatmulArgs args;
  GemmArgs& g = args.gemm;
  g.trans_a = flag(o.attributes[0], "trans_a");
  g.trans_b = flag(o.attributes[1], "trans_b");
  g.m = c.tensor->dims[ndim - 2];
  g.n = c.tensor->dims[ndim - 1];
  g.k = a.tensor->dims[ndim - (g.trans_a ? 2 : 1)];
  Dims wanted_a = c.tensor->dims, wanted_b = c.tensor->dims;
  Index a_size = g.m * g.k, b_size = g.k * g.n;
  args.ndim = static_cast<Index>(ndim) - 2;
  for (std::size_t d = ndim - 2; d-- > 0;) {
    const Index n = c.tensor->dims[d], an = a.tensor->dims[d], bn = b.tensor->dims[d];
    wanted_a[d] = an == 1 ? 1 : n;
    wanted_b[d] = bn == 1 ? 1 : n;
    require(an == n || bn == n, "BadShape",
            "no operand has the batch of c " + text(c.tensor->dims));
    args.dims[d] = n;
    args.a_strides[d] = an == 1 ? 0 : a_size;
    args.b_strides[d] = bn == 1 ? 0 : b_size;
    a_size *= an;
    b_size *= bn;
  }
  wanted_a[ndim - 2] = g.trans_a ? g.k : g.m;
  wanted_a[ndim - 1] = g.trans_a ? g.m : g.k;
  wanted_b[ndim - 2] = g.trans_b ? g.n : g.k;
  wanted_b[ndim - 1] = g.trans_b ? g.k : g.n;
  require_dims(a, wanted_a, "a");
  require_dims(b, wanted_b, "b");
  g.a = floats_in(a);
  g.b = floats_in(b);
  g.c = floats_out(c);
  const auto scratch = static_cast<std::uint64_t>(gemm_scratch_floats(g.k));
  return call_of(kernels.matmul, args,
                 static_cast<double>(c.tensor->elements) * static_cast<double>(g.k),
                 bytes_of_floats(scratch));
}

Call prepare_adamw(const Operands& o, const Kernels& kernels) {
  const Operand &param = o.in[0], &grad = o.in[1], &lr = o.in[2], &m = o.in[3], &v = o.in[4],
                &t = o.in[5];
  require_floats({&param, &grad, &lr, &m, &v, &t});
  require(
      o.out[0].tensor == param.tensor && o.out[1].tensor == m.tensor && o.out[2].tensor == v.tensor,
      "BadOperand", "works in place: its outputs must be its param, m and v");
  for (const Operand* operand : {&grad, &m, &v})
    require_dims(*operand, param.tensor->dims, "grad, m and v");
  require_dims(lr, {}, "lr");
  require_dims(t, {}, "t");
  AdamwArgs args{floats_out(param), floats_in(grad), floats_in(lr),  floats_out(m),
                 floats_out(v),     floats_in(t),    elements(param)};
  args.beta1 = in_unit(o.attributes[0], "beta1");
  args.beta2 = in_unit(o.attributes[1], "beta2");
  args.epsilon = finite(o.attributes[2], "epsilon");
  args.weight_decay = finite(o.attributes[3], "weight_decay");
  return call_of(kernels.adamw, args, 4.0 * static_cast<double>(args.size));
}

Call prepare_blend(const Operands& o, const Kernels& kernels) {
  const Operand &slot = o.in[0], &value = o.in[1];
  require_floats({&slot, &value});
  require(o.out[0].tensor == slot.tensor, "BadOperand",
          "works in place: its output must be its slot");
  require_dims(value, slot.tensor->dims, "value");
  const BlendArgs args{floats_out(slot), floats_in(value), elements(slot),
                       finite(o.attributes[0], "rate")};
  return call_of(kernels.blend, args, static_cast<double>(args.size));
}

Call prepare_random(const Operands& o, const Kernels& kernels) {
  const Operand &seed = o.in[0], &step = o.in[1], &y = o.out[0];
  require_floats({&seed, &step, &y});
  require_dims(seed, {}, "seed");
  require_dims(step, {}, "step");
  RandomArgs args{floats_in(seed), floats_in(step), floats_out(y), elements(y)};
  args.distribution =
      static_cast<Distribution>(choice(o.attributes[0], kDistributions, "the distribution"));
  require(o.attributes[1] >= 0, "BadAttribute", "the stream must not be negative");
  args.stream = static_cast<std::uint64_t>(o.attributes[1]);
  return call_of(kernels.random, args, 8.0 * static_cast<double>(args.size));
}

}  // namespace edge
