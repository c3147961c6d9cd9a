// Checks of one use of each operation, and the kernel call it becomes.
#include <algorithm>
#include <limits>

#include "engine/operands.h"
#include "engine/window.h"

namespace edge {

namespace {

Call prepare_gemm(const Operands& o, const Kernels& kernels) {
  const Operand &a = o.in[0], &b = o.in[1], &bias = o.in[2], &c = o.out[0];
  require_floats({&a, &b, &bias, &c});
  require_ndim(c, 2, "c");
  require_ndim(a, 2, "a");
  require_ndim(b, 2, "b");
  GemmArgs args;
  args.trans_a = flag(o.attributes[0], "trans_a");
  args.trans_b = flag(o.attributes[1], "trans_b");
  args.relu = flag(o.attributes[2], "relu");
  args.m = c.tensor->dims[0];
  args.n = c.tensor->dims[1];
  args.k = a.tensor->dims[args.trans_a ? 0 : 1];
  require_dims(a, args.trans_a ? Dims{args.k, args.m} : Dims{args.m, args.k}, "a");
  require_dims(b, args.trans_b ? Dims{args.n, args.k} : Dims{args.k, args.n}, "b");
  if (bias.tensor != nullptr) require_dims(bias, {args.n}, "bias");
  args.a = floats_in(a);
  args.b = floats_in(b);
  args.bias = floats_in(bias);
  args.c = floats_out(c);
  const auto scratch = static_cast<std::uint64_t>(gemm_scratch_floats(args.k));
  return call_of(kernels.gemm, args, count({args.m, args.n, args.k}), bytes_of_floats(scratch));
}

double conv_work(const ConvArgs& a) {
  return count({a.images, a.groups, a.filters, a.channels, a.out_height, a.out_width, a.kernel_h,
                a.kernel_w});
}

Call prepare_conv(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &w = o.in[1], &bias = o.in[2], &y = o.out[0];
  require_floats({&x, &w, &bias, &y});
  ConvArgs args = conv_args(*x.tensor, *w.tensor, *y.tensor, o.attributes);
  args.relu = flag(o.attributes[9], "relu");
  if (bias.tensor != nullptr) require_dims(bias, {args.groups * args.filters}, "bias");
  args.x = floats_in(x);
  args.w = floats_in(w);
  args.bias = floats_in(bias);
  args.out = floats_out(y);
  return call_of(kernels.conv, args, conv_work(args), bytes_of_floats(conv_scratch_floats(args)));
}

Call prepare_conv_grad_x(const Operands& o, const Kernels& kernels) {
  const Operand &d_y = o.in[0], &w = o.in[1], &d_x = o.out[0];
  require_floats({&d_y, &w, &d_x});
  ConvArgs args = conv_args(*d_x.tensor, *w.tensor, *d_y.tensor, o.attributes);
  require(o.attributes[9] == 0, "BadAttribute", "the last attribute must be 0");
  args.x = floats_in(d_y);
  args.w = floats_in(w);
  args.out = floats_out(d_x);
  return call_of(kernels.conv_grad_x, args, conv_work(args),
                 bytes_of_floats(conv_grad_x_scratch_floats(args)));
}

Call prepare_conv_grad_w(const Operands& o, const Kernels& kernels) {
  const Operand &d_y = o.in[0], &x = o.in[1], &d_w = o.out[0];
  require_floats({&d_y, &x, &d_w});
  ConvArgs args = conv_args(*x.tensor, *d_w.tensor, *d_y.tensor, o.attributes);
  require(o.attributes[9] == 0, "BadAttribute", "the last attribute must be 0");
  args.x = floats_in(x);
  args.w = floats_in(d_y);
  args.out = floats_out(d_w);
  return call_of(kernels.conv_grad_w, args, conv_work(args),
                 bytes_of_floats(conv_grad_w_scratch_floats(args)));
}

Call prepare_relu(const Operands& o, bool grad, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.in[1], &out = o.out[0];
  require_floats({&x, &y, &out});
  require_dims(out, x.tensor->dims, "the output");
  if (grad) require_dims(y, x.tensor->dims, "y");
  const UnaryArgs args{floats_in(x), floats_in(y), floats_out(out), elements(out)};
  return call_of(grad ? kernels.relu_grad : kernels.relu, args, static_cast<double>(args.size));
}

void set_index(const Operand& index, PoolArgs& args) {
  const bool wide = args.kernel_h * args.kernel_w > 256;
  require_dtype(index, wide ? Dtype::int32 : Dtype::uint8, "index");
  if (wide) {
    args.index32 = reinterpret_cast<std::int32_t*>(index.data);
  } else {
    args.index8 = index.data;
  }
}

double pool_work(const PoolArgs& a) {
  return count({a.planes, a.out_height, a.out_width, std::min(a.kernel_h, a.height),
                std::min(a.kernel_w, a.width)});
}

Call prepare_maxpool(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.out[0], &index = o.out[1];
  require_floats({&x, &y});
  PoolArgs args = pool_args(*x.tensor, *y.tensor, o.attributes);
  require_dims(index, y.tensor->dims, "index");
  set_index(index, args);
  args.in = floats_in(x);
  args.out = floats_out(y);
  return call_of(kernels.maxpool, args, pool_work(args));
}

Call prepare_maxpool_grad(const Operands& o, const Kernels& kernels) {
  const Operand &d_y = o.in[0], &index = o.in[1], &d_x = o.out[0];
  require_floats({&d_y, &d_x});
  PoolArgs args = pool_args(*d_x.tensor, *d_y.tensor, o.attributes);
  require_dims(index, d_y.tensor->dims, "index");
  set_index(index, args);
  args.in = floats_in(d_y);
  args.out = floats_out(d_x);
  return call_of(kernels.maxpool_grad, args, pool_work(args));
}

Call prepare_avgpool(const Operands& o, bool grad, const Kernels& kernels) {
  const Operand &in = o.in[0], &out = o.out[0];
  require_floats({&in, &out});
  PoolArgs args = grad ? pool_args(*out.tensor, *in.tensor, o.attributes)
                       : pool_args(*in.tensor, *out.tensor, o.attributes);
  args.count_include_pad = flag(o.attributes[10], "count_include_pad");
  args.in = floats_in(in);
  args.out = floats_out(out);
  return call_of(grad ? kernels.avgpool_grad : kernels.avgpool, args, pool_work(args));
}

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

Call prepare_arithmetic(const Operands& o, void (*kernel)(const BinaryArgs&, const Worker&)) {
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

SoftmaxXentArgs xent_args(const Operand& rows, const Operand& labels) {
  require_ndim(rows, 2, "the rows");
  require_dtype(labels, Dtype::int32, "labels");
  require_dims(labels, {rows.tensor->dims[0]}, "labels");
  // The engine checks labels once, before a step writes anything, so no operation may make them.
  const Role role = labels.tensor->role;
  require(role == Role::batch || role == Role::frozen || role == Role::constant, "BadOperand",
          "labels must be a batch, frozen or constant tensor");
  SoftmaxXentArgs args;
  args.in = floats_in(rows);
  args.labels = reinterpret_cast<const std::int32_t*>(labels.data);
  args.rows = rows.tensor->dims[0];
  args.classes = rows.tensor->dims[1];
  require(args.classes <= std::numeric_limits<std::int32_t>::max(), "BadShape",
          "more classes than an int32 label can name");
  return args;
}

Call prepare_softmax_xent(const Operands& o, const Kernels& kernels) {
  const Operand &logits = o.in[0], &loss = o.out[0], &probs = o.out[1];
  require_floats({&logits, &loss, &probs});
  SoftmaxXentArgs args = xent_args(logits, o.in[1]);
  require_dims(loss, {}, "loss");
  require_dims(probs, logits.tensor->dims, "probs");
  args.loss = floats_out(loss);
  args.out = floats_out(probs);
  return call_of(kernels.softmax_xent, args, 0.0);
}

Call prepare_softmax_xent_grad(const Operands& o, const Kernels& kernels) {
  const Operand &probs = o.in[0], &d_loss = o.in[2], &d_logits = o.out[0];
  require_floats({&probs, &d_loss, &d_logits});
  SoftmaxXentArgs args = xent_args(probs, o.in[1]);
  require_dims(d_loss, {}, "d_loss");
  require_dims(d_logits, probs.tensor->dims, "d_logits");
  args.d_loss = floats_in(d_loss);
  args.out = floats_out(d_logits);
  return call_of(kernels.softmax_xent_grad, args, static_cast<double>(probs.tensor->elements));
}

Call prepare_sgd(const Operands& o, const Kernels& kernels) {
  const Operand &param = o.in[0], &grad = o.in[1], &lr = o.in[2], &velocity = o.in[3];
  require_floats({&param, &grad, &lr, &velocity});
  require(o.out[0].tensor == param.tensor && o.out[1].tensor == velocity.tensor, "BadOperand",
          "works in place: its outputs must be its param and velocity");
  require_dims(grad, param.tensor->dims, "grad");
  require_dims(lr, {}, "lr");
  if (velocity.tensor != nullptr) require_dims(velocity, param.tensor->dims, "velocity");
  SgdArgs args{floats_out(param), floats_in(grad), floats_in(lr), floats_out(velocity),
               elements(param)};
  args.momentum = finite(o.attributes[0], "momentum");
  args.weight_decay = finite(o.attributes[1], "weight_decay");
  args.nesterov = flag(o.attributes[2], "nesterov");
  require(velocity.tensor != nullptr || (args.momentum == 0.0F && !args.nesterov), "BadAttribute",
          "momentum needs a velocity operand");
  return call_of(kernels.sgd, args, static_cast<double>(args.size));
}

Call prepare_copy(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &y = o.out[0];
  require_dtype(y, x.tensor->dtype, "y");
  require(x.tensor->elements == y.tensor->elements, "BadShape",
          "x " + text(x.tensor->dims) + " and y " + text(y.tensor->dims) +
              " differ in their number of elements");
  return call_of(kernels.copy, {x.data, y.data, static_cast<Index>(x.tensor->bytes)},
                 static_cast<double>(x.tensor->elements));
}

}  // namespace

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

Call prepare(Opcode code, const Operands& o, const Kernels& kernels) {
  const OpInfo& info = op_info(static_cast<std::uint16_t>(code));
  require(info.n_attributes == kAnyNumber ||
              o.attributes.size() == static_cast<std::size_t>(info.n_attributes),
          "BadAttribute",
          "takes " + std::to_string(info.n_attributes) + " attributes, got " +
              std::to_string(o.attributes.size()));
  switch (code) {
    case Opcode::gemm:
      return prepare_gemm(o, kernels);
    case Opcode::conv:
      return prepare_conv(o, kernels);
    case Opcode::conv_grad_x:
      return prepare_conv_grad_x(o, kernels);
    case Opcode::conv_grad_w:
      return prepare_conv_grad_w(o, kernels);
    case Opcode::relu:
      return prepare_relu(o, false, kernels);
    case Opcode::relu_grad:
      return prepare_relu(o, true, kernels);
    case Opcode::maxpool:
      return prepare_maxpool(o, kernels);
    case Opcode::maxpool_grad:
      return prepare_maxpool_grad(o, kernels);
    case Opcode::avgpool:
      return prepare_avgpool(o, false, kernels);
    case Opcode::avgpool_grad:
      return prepare_avgpool(o, true, kernels);
    case Opcode::add:
      return prepare_arithmetic(o, kernels.add);
    case Opcode::sub:
      return prepare_arithmetic(o, kernels.sub);
    case Opcode::mul:
      return prepare_arithmetic(o, kernels.mul);
    case Opcode::reduce_sum:
      return prepare_reduce_sum(o, kernels);
    case Opcode::transpose:
      return prepare_transpose(o, kernels);
    case Opcode::softmax_xent:
      return prepare_softmax_xent(o, kernels);
    case Opcode::softmax_xent_grad:
      return prepare_softmax_xent_grad(o, kernels);
    case Opcode::sgd:
      return prepare_sgd(o, kernels);
    case Opcode::copy:
      return prepare_copy(o, kernels);
    case Opcode::unary:
      return prepare_unary(o, kernels);
    case Opcode::binary:
      return prepare_binary(o, kernels);
    case Opcode::where:
      return prepare_where(o, kernels);
    case Opcode::minmax:
      return prepare_minmax(o, kernels);
    case Opcode::argminmax:
      return prepare_argminmax(o, kernels);
    case Opcode::strided_copy:
      return prepare_strided_copy(o, kernels);
    case Opcode::gather:
      return prepare_gather(o, kernels);
    case Opcode::scatter_add:
      return prepare_scatter_add(o, kernels);
    case Opcode::cast:
      return prepare_cast(o, kernels);
    case Opcode::matmul:
      return prepare_matmul(o, kernels);
    case Opcode::cumsum:
      return prepare_cumsum(o, kernels);
    case Opcode::topk:
      return prepare_topk(o, kernels);
    case Opcode::adamw:
      return prepare_adamw(o, kernels);
    case Opcode::blend:
      return prepare_blend(o, kernels);
  }
  refuse("BadOpcode", "unknown opcode");
}

}  // namespace edge
