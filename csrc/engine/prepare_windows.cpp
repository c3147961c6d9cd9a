// Convolutions and poolings: operations over windows.
#include <algorithm>

#include "engine/prepare.h"
#include "engine/window.h"
#include "kernels/depthwise_plan.h"
#include "kernels/pointwise_plan.h"

namespace edge {

namespace {

constexpr float kLeastLimit = 1.17549435e-38F;

double conv_work(const ConvArgs& a) {
  return count({a.images, a.groups, a.filters, a.channels, a.out_height, a.out_width, a.kernel_h,
                a.kernel_w});
}

// 0 for none, 1 for relu, or the bits of a float: relu with that limit.
void set_activation(std::int32_t attribute, ConvArgs& args) {
  args.relu = attribute != 0;
  if (attribute == 0 || attribute == 1) return;
  args.limit = finite(attribute, "the limit");
  require(args.limit >= kLeastLimit, "BadAttribute",
          "relu must be 0, 1 or the bits of a limit of at least 2^-126, is " +
              std::to_string(attribute));
  require(pointwise::takes(args) && !depthwise::takes(args), "BadAttribute",
          "only a convolution of 1 x 1 taps without padding, more than one channel a group, has a "
          "limit");
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

}  // namespace

Call prepare_conv(const Operands& o, const Kernels& kernels) {
  const Operand &x = o.in[0], &w = o.in[1], &bias = o.in[2], &y = o.out[0];
  require_floats({&x, &w, &bias, &y});
  ConvArgs args = conv_args(*x.tensor, *w.tensor, *y.tensor, o.attributes);
  set_activation(o.attributes[9], args);
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

namespace {

Call avgpool_call(const Operands& o, bool grad, const Kernels& kernels) {
  const Operand &in = o.in[0], &out = o.out[0];
  require_floats({&in, &out});
  PoolArgs args = grad ? pool_args(*out.tensor, *in.tensor, o.attributes)
                       : pool_args(*in.tensor, *out.tensor, o.attributes);
  args.count_include_pad = flag(o.attributes[10], "count_include_pad");
  args.in = floats_in(in);
  args.out = floats_out(out);
  return call_of(grad ? kernels.avgpool_grad : kernels.avgpool, args, pool_work(args));
}

}  // namespace

Call prepare_avgpool(const Operands& o, const Kernels& kernels) {
  return avgpool_call(o, false, kernels);
}
Call prepare_avgpool_grad(const Operands& o, const Kernels& kernels) {
  return avgpool_call(o, true, kernels);
}

}  // namespace edge
