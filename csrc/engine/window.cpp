#include "engine/window.h"

namespace edge {

namespace {

// Strides, pads, dilations and pooling kernels. With it, (kernel - 1) * dilation + pads stays below
// 2^48.
constexpr std::int64_t kMaxAttribute = 65535;

std::int64_t bounded(std::int32_t value, std::int64_t least, const char* name) {
  require(value >= least && value <= kMaxAttribute, "BadAttribute",
          std::string(name) + " must be in " + std::to_string(least) + "..65535, is " +
              std::to_string(value));
  return value;
}

// One spatial dimension; `kernel` was bounded by its tensor or by kMaxAttribute.
struct WindowAxis {
  std::int64_t size, outputs, kernel, stride, pad_before, pad_after, dilation;
};

void check_axis(const WindowAxis& a, const char* name) {
  const std::int64_t extent = (a.kernel - 1) * a.dilation + 1;
  const std::int64_t padded = a.size + a.pad_before + a.pad_after;
  require(padded >= extent, "BadShape",
          std::string(name) + ": the window spans " + std::to_string(extent) +
              ", the padded input only " + std::to_string(padded));
  const std::int64_t outputs = (padded - extent) / a.stride + 1;
  require(a.outputs == outputs, "BadShape",
          std::string(name) + ": the output must have " + std::to_string(outputs) +
              " places, has " + std::to_string(a.outputs));
}

// A window without a single place of x has no maximum and no mean. With the dilation within x, a
// window that begins in the padding has a tap in the first `dilation` places, unless it ends before
// x.
void check_no_empty_window(const WindowAxis& a, const char* name) {
  require(a.kernel == 1 || a.dilation <= a.size, "BadAttribute",
          std::string(name) + ": the dilation of a pooling must not exceed its input");
  require(a.pad_before <= (a.kernel - 1) * a.dilation, "BadAttribute",
          std::string(name) + ": the first window lies in the padding alone");
  require((a.outputs - 1) * a.stride - a.pad_before < a.size, "BadAttribute",
          std::string(name) + ": the last window lies in the padding alone");
}

WindowAxis axis_of(Span<const std::int32_t> attributes, std::size_t which, std::int64_t size,
                   std::int64_t outputs, std::int64_t kernel) {
  return {size,
          outputs,
          kernel,
          bounded(attributes[which], 1, "a stride"),
          bounded(attributes[2 + which], 0, "a pad"),
          bounded(attributes[4 + which], 0, "a pad"),
          bounded(attributes[6 + which], 1, "a dilation")};
}

void require_4d(const Tensor& tensor, const char* name) {
  require(tensor.dims.size() == 4, "BadShape",
          std::string(name) + " must have 4 dimensions, has " + std::to_string(tensor.dims.size()));
}

void require_same(std::int64_t a, std::int64_t b, const char* what) {
  require(a == b, "BadShape",
          std::string(what) + " differ: " + std::to_string(a) + " and " + std::to_string(b));
}

// The geometry that convolution and pooling name alike.
template <typename Args>
void place(const WindowAxis& v, const WindowAxis& h, Args& args) {
  args.height = v.size;
  args.width = h.size;
  args.out_height = v.outputs;
  args.out_width = h.outputs;
  args.kernel_h = v.kernel;
  args.kernel_w = h.kernel;
  args.stride_h = v.stride;
  args.stride_w = h.stride;
  args.pad_top = v.pad_before;
  args.pad_left = h.pad_before;
  args.dilation_h = v.dilation;
  args.dilation_w = h.dilation;
}

}  // namespace

ConvArgs conv_args(const Tensor& x, const Tensor& w, const Tensor& y,
                   Span<const std::int32_t> attributes) {
  require_4d(x, "x");
  require_4d(w, "w");
  require_4d(y, "y");
  require_same(x.dims[0], y.dims[0], "the numbers of images of x and y");
  require_same(w.dims[0], y.dims[1], "the filters of w and the channels of y");
  ConvArgs args;
  args.groups = attributes[8];
  require(
      args.groups >= 1 && args.groups <= x.dims[1] && x.dims[1] % args.groups == 0 &&
          w.dims[0] % args.groups == 0,
      "BadAttribute",
      "groups " + std::to_string(args.groups) + " must divide the channels of x and the filters");
  require_same(w.dims[1], x.dims[1] / args.groups, "the channels of w and those of one group of x");
  const WindowAxis v = axis_of(attributes, 0, x.dims[2], y.dims[2], w.dims[2]);
  const WindowAxis h = axis_of(attributes, 1, x.dims[3], y.dims[3], w.dims[3]);
  check_axis(v, "rows");
  check_axis(h, "columns");
  args.images = x.dims[0];
  args.channels = w.dims[1];
  args.filters = w.dims[0] / args.groups;
  place(v, h, args);
  return args;
}

PoolArgs pool_args(const Tensor& x, const Tensor& y, Span<const std::int32_t> attributes) {
  require_4d(x, "x");
  require_4d(y, "y");
  require_same(x.dims[0], y.dims[0], "the numbers of images of x and y");
  require_same(x.dims[1], y.dims[1], "the channels of x and y");
  const WindowAxis v =
      axis_of(attributes, 0, x.dims[2], y.dims[2], bounded(attributes[8], 1, "kernel_h"));
  const WindowAxis h =
      axis_of(attributes, 1, x.dims[3], y.dims[3], bounded(attributes[9], 1, "kernel_w"));
  check_axis(v, "rows");
  check_axis(h, "columns");
  check_no_empty_window(v, "rows");
  check_no_empty_window(h, "columns");
  PoolArgs args;
  args.planes = x.dims[0] * x.dims[1];
  place(v, h, args);
  return args;
}

}  // namespace edge
