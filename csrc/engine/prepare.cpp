// Checks of one use of each operation, and the kernel call it becomes: the products, the loss and
// the update.
#include "engine/prepare.h"

#include <limits>

namespace edge {

namespace {

// The product of a and b; `c` has its shape.
GemmArgs checked_product(const Operand& a, const Operand& b, const Operand& c,
                         Span<const std::int32_t> transposed) {
  require_ndim(c, 2, "c");
  require_ndim(a, 2, "a");
  require_ndim(b, 2, "b");
  GemmArgs args;
  args.trans_a = flag(transposed[0], "trans_a");
  args.trans_b = flag(transposed[1], "trans_b");
  args.m = c.tensor->dims[0];
  args.n = c.tensor->dims[1];
  args.k = a.tensor->dims[args.trans_a ? 0 : 1];
  require_dims(a, args.trans_a ? Dims{args.k, args.m} : Dims{args.m, args.k}, "a");
  require_dims(b, args.trans_b ? Dims{args.n, args.k} : Dims{args.k, args.n}, "b");
  args.a = floats_in(a);
  args.b = floats_in(b);
  return args;
}

}  // namespace

Call prepare_gemm(const Operands& o, const Kernels& kernels) {
  const Operand &bias = o.in[2], &c = o.out[0];
  require_floats({&o.in[0], &o.in[1], &bias, &c});
  GemmArgs args = checked_product(o.in[0], o.in[1], c, o.attributes);
  args.relu = flag(o.attributes[2], "relu");
  if (bias.tensor != nullptr) require_dims(bias, {args.n}, "bias");
  args.bias = floats_in(bias);
  args.c = floats_out(c);
  const auto scratch = static_cast<std::uint64_t>(gemm_scratch_floats(args.k));
  return call_of(kernels.gemm, args, count({args.m, args.n, args.k}), bytes_of_floats(scratch));
}

namespace {

// Labels for the rows first .. first + B of a batch; `attributes` are first_row, or nothing: all
// rows. Returns first.
std::int64_t checked_labels(const Operand& rows, const Operand& labels,
                            Span<const std::int32_t> attributes) {
  require_ndim(rows, 2, "the rows");
  require_dtype(labels, Dtype::int32, "labels");
  require_ndim(labels, 1, "labels");
  require(attributes.size() <= 1, "BadAttribute", "takes first_row or no attribute");
  const std::int64_t first = attributes.size() == 1 ? attributes[0] : 0;
  const std::int64_t all = labels.tensor->dims[0], own = rows.tensor->dims[0];
  require(first >= 0, "BadAttribute", "first_row must not be negative");
  require(attributes.size() == 1 ? own <= all && first <= all - own : own == all, "BadShape",
          "rows " + std::to_string(first) + ".." + std::to_string(first + own) + " of " +
              std::to_string(all) + " labels");
  // The engine checks labels once, before a step writes anything, so no operation may make them.
  const Role role = labels.tensor->role;
  require(role == Role::batch || role == Role::frozen || role == Role::constant, "BadOperand",
          "labels must be a batch, frozen or constant tensor");
  return first;
}

SoftmaxXentArgs xent_args(const Operand& rows, const Operand& labels,
                          Span<const std::int32_t> attributes) {
  SoftmaxXentArgs args;
  args.in = floats_in(rows);
  args.labels = reinterpret_cast<const std::int32_t*>(labels.data);
  args.first = checked_labels(rows, labels, attributes);
  args.rows = rows.tensor->dims[0];
  args.labelled_rows = labels.tensor->dims[0];
  args.classes = rows.tensor->dims[1];
  require(args.classes <= std::numeric_limits<std::int32_t>::max(), "BadShape",
          "more classes than an int32 label can name");
  return args;
}

}  // namespace

Call prepare_softmax_xent(const Operands& o, const Kernels& kernels) {
  const Operand &logits = o.in[0], &loss = o.out[0], &probs = o.out[1];
  require_floats({&logits, &loss, &probs});
  SoftmaxXentArgs args = xent_args(logits, o.in[1], o.attributes);
  require_dims(loss, {}, "loss");
  require_dims(probs, logits.tensor->dims, "probs");
  args.loss = floats_out(loss);
  args.out = floats_out(probs);
  return call_of(kernels.softmax_xent, args, 0.0);
}

Call prepare_softmax_xent_grad(const Operands& o, const Kernels& kernels) {
  const Operand &probs = o.in[0], &d_loss = o.in[2], &d_logits = o.out[0];
  require_floats({&probs, &d_loss, &d_logits});
  SoftmaxXentArgs args = xent_args(probs, o.in[1], o.attributes);
  require_dims(d_loss, {}, "d_loss");
  require_dims(d_logits, probs.tensor->dims, "d_logits");
  args.d_loss = floats_in(d_loss);
  args.out = floats_out(d_logits);
  return call_of(kernels.softmax_xent_grad, args, static_cast<double>(probs.tensor->elements));
}

Call prepare_sampled_softmax(const Operands& o, const Kernels& kernels) {
  const Operand &features = o.in[0], &labels = o.in[1], &rows = o.in[2], &correction = o.in[3];
  require_floats({&features, &rows, &correction, &o.out[0], &o.out[1], &o.out[2]});
  require(o.attributes.size() >= 2, "BadAttribute", "takes scale, own and perhaps first_row");
  SampledSoftmaxArgs args;
  args.first = checked_labels(features, labels, {o.attributes.data() + 2, o.attributes.size() - 2});
  require_ndim(rows, 2, "rows");
  args.batch = features.tensor->dims[0];
  args.width = features.tensor->dims[1];
  args.count = rows.tensor->dims[0];
  args.all_labels = labels.tensor->dims[0];
  require_dims(rows, {args.count, args.width}, "rows");
  if (correction.tensor != nullptr) require_dims(correction, {args.count}, "correction");
  require_dims(o.out[0], {}, "loss");
  require_dims(o.out[1], features.tensor->dims, "d_features");
  require_dims(o.out[2], rows.tensor->dims, "d_rows");
  args.scale = finite(o.attributes[0], "scale");
  require(args.scale >= 0.0F, "BadAttribute", "scale must not be negative");
  args.own = o.attributes[1];
  require(args.own >= 0 && args.own <= args.count, "BadAttribute",
          "own must be in 0.." + std::to_string(args.count));
  require(args.count <= std::numeric_limits<std::int32_t>::max(), "BadShape",
          "more classes than an int32 label can name");
  args.features = floats_in(features);
  args.labels = reinterpret_cast<const std::int32_t*>(labels.data);
  args.rows = floats_in(rows);
  args.correction = floats_in(correction);
  args.loss = floats_out(o.out[0]);
  args.d_features = floats_out(o.out[1]);
  args.d_rows = floats_out(o.out[2]);
  args.layout = softmax_layout(args.batch, args.width, args.count);
  Call call =
      call_of(kernels.sampled_softmax, args, 3 * count({args.batch, args.width, args.count}),
              bytes_of_floats(static_cast<std::uint64_t>(args.layout.shared_floats)));
  call.phases = args.layout.phases;
  return call;
}

namespace {

// The step of `param`, by a gradient that is still to be named. `settings` are momentum,
// weight_decay and nesterov.
SgdArgs checked_update(const Operands& o, const Operand& param, const Operand& lr,
                       const Operand& velocity, const std::int32_t* settings) {
  require_floats({&param, &lr, &velocity});
  require(o.out[0].tensor == param.tensor && o.out[1].tensor == velocity.tensor, "BadOperand",
          "works in place: its outputs must be its param and velocity");
  require_dims(lr, {}, "lr");
  if (velocity.tensor != nullptr) require_dims(velocity, param.tensor->dims, "velocity");
  SgdArgs args{floats_out(param), nullptr, floats_in(lr), floats_out(velocity), elements(param)};
  args.momentum = finite(settings[0], "momentum");
  args.weight_decay = finite(settings[1], "weight_decay");
  args.nesterov = flag(settings[2], "nesterov");
  require(velocity.tensor != nullptr || (args.momentum == 0.0F && !args.nesterov), "BadAttribute",
          "momentum needs a velocity operand");
  return args;
}

}  // namespace

Call prepare_sgd(const Operands& o, const Kernels& kernels) {
  const Operand &param = o.in[0], &grad = o.in[1];
  SgdArgs args = checked_update(o, param, o.in[2], o.in[3], o.attributes.data());
  require_floats({&grad});
  require_dims(grad, param.tensor->dims, "grad");
  args.grad = floats_in(grad);
  return call_of(kernels.sgd, args, static_cast<double>(args.size));
}

Call prepare_gemm_sgd(const Operands& o, const Kernels& kernels) {
  const Operand &a = o.in[0], &b = o.in[1], &param = o.in[2];
  require_floats({&a, &b});
  GemmSgdArgs args;
  args.sgd = checked_update(o, param, o.in[3], o.in[4], o.attributes.data() + 2);
  args.gemm = checked_product(a, b, param, o.attributes);
  const GemmArgs& g = args.gemm;
  const auto scratch = static_cast<std::uint64_t>(gemm_sgd_scratch_floats(g.m, g.n, g.k));
  return call_of(kernels.gemm_sgd, args, count({g.m, g.n, g.k}), bytes_of_floats(scratch));
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

}  // namespace edge
