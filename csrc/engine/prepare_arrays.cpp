// Operations over arrays of any shape: elementwise with broadcasting, sums over axes,
// transposition.
#include <algorithm>

#include "engine/prepare.h"

namespace edge {

namespace {

Index extent_from_right(const Dims& dims, std::size_t place) {
  return place < dims.size() ? dims[dims.size() - 1 - place] : 1;
}

// Dimensions from the right; a run that is dense, or broadcast, in both operands is merged into
// one.
BinaryArgs broadcast_args(const Dims& a, const Dims& b, const Dims& c) {
  Index dims[6] = {1}, a_strides[6] = {0}, b_strides[6] = {0};
  Index ndim = 0, a_size = 1, b_size = 1;
  for (std::size_t place = 0; place < c.size(); ++place) {
    const Index n = extent_from_right(c, place), an = extent_from_right(a, place),
                bn = extent_from_right(b, place);
    const bool fits = (an == n || an == 1) && (bn == n || bn == 1) && (an == n || bn == n);
    require(fits, "BadShape",
            "shapes " + text(a) + " and " + text(b) + " do not broadcast to " + text(c));
    const Index a_stride = an == 1 ? 0 : a_size, b_stride = bn == 1 ? 0 : b_size;
    a_size *= an;
    b_size *= bn;
    if (n == 1) continue;
    const Index inner = ndim - 1;
    if (ndim > 0 && a_stride == a_strides[inner] * dims[inner] &&
        b_stride == b_strides[inner] * dims[inner]) {
      dims[inner] *= n;
      continue;
    }
    dims[ndim] = n;
    a_strides[ndim] = a_stride;
    b_strides[ndim] = b_stride;
    ++ndim;
  }
  BinaryArgs args;
  args.ndim = std::max<Index>(ndim, 1);
  for (Index d = 0; d < args.ndim; ++d) {
    args.dims[d] = dims[args.ndim - 1 - d];
    args.a_strides[d] = a_strides[args.ndim - 1 - d];
    args.b_strides[d] = b_strides[args.ndim - 1 - d];
  }
  return args;
}

// One axis of x from the right; merged with its inner neighbour where both are kept or both are
// reduced.
void push_axis(Index n, Index stride, Index* dims, Index* strides, Index& ndim) {
  if (ndim > 0 && strides[ndim - 1] * dims[ndim - 1] == stride) {
    dims[ndim - 1] *= n;
    return;
  }
  dims[ndim] = n;
  strides[ndim] = stride;
  ++ndim;
}

ReduceArgs reduce_args(const Dims& x, unsigned axes) {
  ReduceArgs args;
  Index stride = 1;
  for (std::size_t d = x.size(); d-- > 0;) {
    if (x[d] != 1) {
      if ((axes >> d & 1U) != 0) {
        push_axis(x[d], stride, args.reduced_dims, args.reduced_strides, args.reduced_ndim);
      } else {
        push_axis(x[d], stride, args.kept_dims, args.kept_strides, args.kept_ndim);
      }
    }
    stride *= x[d];
  }
  if (args.reduced_ndim == 0)
    push_axis(1, 1, args.reduced_dims, args.reduced_strides, args.reduced_ndim);
  std::reverse(args.kept_dims, args.kept_dims + args.kept_ndim);
  std::reverse(args.kept_strides, args.kept_strides + args.kept_ndim);
  std::reverse(args.reduced_dims, args.reduced_dims + args.reduced_ndim);
  std::reverse(args.reduced_strides, args.reduced_strides + args.reduced_ndim);
  return args;
}

}  // namespace

namespace {

Call relu_call(const Operands& o, bool grad, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.in[1], &out = o.out[0];
  require_floats({&x, &y, &out});
  require_dims(out, x.tensor->dims, "the output");
  if (grad) require_dims(y, x.tensor->dims, "y");
  const UnaryArgs args{floats_in(x), floats_in(y), floats_out(out), elements(out)};
  return call_of(grad ? kernels.relu_grad : kernels.relu, args, static_cast<double>(args.size));
}

Call arithmetic_call(const Operands& o, void (*kernel)(const BinaryArgs&, const Worker&)) {
  const Operand &a = o.in[0], &b = o.in[1], &c = o.out[0];
  require_floats({&a, &b, &c});
  require(a.tensor->dims.size() <= c.tensor->dims.size() &&
              b.tensor->dims.size() <= c.tensor->dims.size(),
          "BadShape", "c has fewer dimensions than an input");
  BinaryArgs args = broadcast_args(a.tensor->dims, b.tensor->dims, c.tensor->dims);
  args.a = floats_in(a);
  args.b = floats_in(b);
  args.c = floats_out(c);
  return call_of(kernel, args, static_cast<double>(c.tensor->elements));
}

}  // namespace

Call prepare_relu(const Operands& o, const Kernels& kernels) {
  return relu_call(o, false, kernels);
}
Call prepare_relu_grad(const Operands& o, const Kernels& kernels) {
  return relu_call(o, true, kernels);
}
Call prepare_add(const Operands& o, const Kernels& kernels) {
  return arithmetic_call(o, kernels.add);
}
Call prepare_sub(const Operands& o, const Kernels& kernels) {
  return arithmetic_call(o, kernels.sub);
}
Call prepare_mul(const Operands& o, const Kernels& kernels) {
  return arithmetic_call(o, kernels.mul);
}

ReduceArgs checked_reduction(const Operand& x, const Operand& y, std::int32_t axes) {
  require_floats({&x, &y});
  const Dims& dims = x.tensor->dims;
  require(axes >= 0 && (axes >> dims.size()) == 0, "BadAttribute",
          "axes mask " + std::to_string(axes) + " names an axis that x " + text(dims) +
              " does not have");
  Dims dropped, kept;
  for (std::size_t d = 0; d < dims.size(); ++d) {
    const bool reduced = (axes >> d & 1) != 0;
    kept.push_back(reduced ? 1 : dims[d]);
    if (!reduced) dropped.push_back(dims[d]);
  }
  if (y.tensor->dims != kept) require_dims(y, dropped, "y");
  ReduceArgs args = reduce_args(dims, static_cast<unsigned>(axes));
  args.x = floats_in(x);
  args.y = floats_out(y);
  return args;
}

Call prepare_reduce_sum(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.out[0];
  ReduceArgs args = checked_reduction(x, y, o.attributes[0]);
  args.scale = finite(o.attributes[1], "scale");
  return call_of(kernels.reduce_sum, args, static_cast<double>(x.tensor->elements));
}

Call prepare_transpose(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.out[0];
  require_floats({&x, &y});
  const Dims& dims = x.tensor->dims;
  require(o.attributes.size() == dims.size(), "BadAttribute",
          "needs one attribute an axis: " + std::to_string(dims.size()) + ", got " +
              std::to_string(o.attributes.size()));
  require_ndim(y, dims.size(), "y");
  unsigned seen = 0;
  TransposeArgs args;
  for (std::size_t d = 0; d < dims.size(); ++d) {
    const std::int32_t axis = o.attributes[d];
    require(axis >= 0 && static_cast<std::size_t>(axis) < dims.size() && (seen >> axis & 1U) == 0,
            "BadAttribute", "the axes are no permutation");
    seen |= 1U << axis;
    const Index n = dims[static_cast<std::size_t>(axis)];
    require(y.tensor->dims[d] == n, "BadShape",
            "y has shape " + text(y.tensor->dims) + ", x permuted does not");
    Index stride = 1;
    for (std::size_t inner = static_cast<std::size_t>(axis) + 1; inner < dims.size(); ++inner)
      stride *= dims[inner];
    args.dims[d] = n;
    args.strides[d] = stride;
  }
  args.ndim = static_cast<Index>(dims.size());
  if (args.ndim == 0) args.ndim = args.dims[0] = args.strides[0] = 1;
  args.x = floats_in(x);
  args.y = floats_out(y);
  return call_of(kernels.transpose, args, static_cast<double>(x.tensor->elements));
}

}  // namespace edge
