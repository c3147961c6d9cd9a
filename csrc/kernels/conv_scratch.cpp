// Upper bounds of a convolution's scratch, in checked arithmetic: attributes come from hostile
// bytes.
#include <algorithm>

#include "core/checks.h"
#include "kernels/conv.h"
#include "kernels/conv_lanes_plan.h"
#include "kernels/conv_plan.h"
#include "kernels/conv_rows_plan.h"
#include "kernels/depthwise_plan.h"
#include "kernels/pointwise_plan.h"
#include "kernels/vertical_plan.h"
#include "kernels/winograd_plan.h"

namespace edge {

namespace {

using conv_plan::Axis;
using conv_plan::Blocks;
using conv_plan::Problem;

// No product of sizes may come near 64 bits; 2^40 floats is far beyond the cap of a plan's
// workspace.
constexpr std::uint64_t kMaxFloats = std::uint64_t{1} << 40;

std::uint64_t times(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t product = checked_mul(a, b, "BadAttribute");
  require(product <= kMaxFloats, "BadAttribute",
          "the window's padding and dilation need too much scratch");
  return product;
}

void bound_products(const Problem& p) {
  const auto v = static_cast<std::uint64_t>(p.v.outputs + p.v.halo);
  const auto h = static_cast<std::uint64_t>(p.h.outputs + p.h.halo);
  const auto planes =
      times(static_cast<std::uint64_t>(p.v.planes), static_cast<std::uint64_t>(p.h.planes));
  const auto image = times(times(v, h), static_cast<std::uint64_t>(p.images));
  times(times(image, planes), static_cast<std::uint64_t>(p.channels));
  times(image, 2 * kMaxTileRows);
  const auto taps =
      times(static_cast<std::uint64_t>(p.v.taps), static_cast<std::uint64_t>(p.h.taps));
  times(taps, static_cast<std::uint64_t>(2 * p.channels));
}

// choose_blocks() never takes more than the budget, or the smallest blocks where those exceed it,
// or everything.
std::uint64_t bound(const Problem& p) {
  bound_products(p);
  const Index least = conv_plan::scratch_floats(p, {1, 1, 1});
  const Index most = conv_plan::scratch_floats(p, {p.images, p.v.outputs, p.channels});
  return static_cast<std::uint64_t>(conv_plan::least(most, conv_plan::most(least, kConvBudget)));
}

// The part of d_x that needs most: all sizes at their largest over the residues.
Axis largest_backward_axis(Index size, Index outputs, Index taps, Index stride, Index dilation) {
  Axis axis;
  axis.outputs = conv_plan::ceil_ratio(size, stride);
  axis.source = outputs;
  axis.halo = (taps - 1) * dilation / stride + 1;
  axis.taps = conv_plan::ceil_ratio(taps, conv_plan::residue_period(stride, dilation));
  return axis;
}

// Sources and targets as they are: what conv_lanes_plan.h multiplies.
void bound_planes(const ConvArgs& a) {
  const auto product = [](Index rows, Index columns, Index channels) {
    return times(times(static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns)),
                 static_cast<std::uint64_t>(channels));
  };
  const Index reach_v = a.height + a.out_height * a.stride_h + a.kernel_h * a.dilation_h;
  const Index reach_h = a.width + a.out_width * a.stride_w + a.kernel_w * a.dilation_w;
  product(reach_v, reach_h, a.channels);
  product(reach_v, reach_h, a.filters);
}

std::uint64_t lanes_floats(Index cut, const conv_lanes::Problem& p,
                           Index (*need)(const conv_lanes::Problem&, Index)) {
  return cut == 0 ? 0 : static_cast<std::uint64_t>(need(p, cut));
}

std::uint64_t depthwise_floats(const depthwise::Problem& p,
                               Index (*need)(const depthwise::Problem&)) {
  const auto number = [](Index n) { return static_cast<std::uint64_t>(n); };
  const Index row = depthwise::layout_of(p).row;
  times(number(depthwise::packed_rows(p.v, p.v.outputs)), number(row));
  times(times(number(p.v.taps), number(p.h.taps)), depthwise::kMostLanes);
  times(number(p.images), number(p.groups));
  return number(need(p));
}

std::uint64_t winograd_floats(const ConvArgs& a, const winograd::Problem& p) {
  const winograd::Blocks blocks = winograd::correlate_blocks(a, p);
  return blocks.images == 0 ? 0 : static_cast<std::uint64_t>(winograd::correlate_floats(p, blocks));
}

std::uint64_t rows_floats(const conv_rows::Problem& p) {
  const conv_rows::Blocks blocks = conv_rows::correlate_blocks(p);
  return blocks.rows == 0 ? 0 : static_cast<std::uint64_t>(conv_rows::correlate_floats(p, blocks));
}

}  // namespace

std::uint64_t conv_scratch_floats(const ConvArgs& a) {
  if (depthwise::takes(a))
    return depthwise_floats(depthwise::forward_problem(a), depthwise::scratch_floats);
  if (pointwise::takes(a)) return static_cast<std::uint64_t>(gemm_scratch_floats(a.channels));
  if (vertical::takes(a)) {
    return static_cast<std::uint64_t>(vertical::scratch_floats(a.channels, a.kernel_h));
  }
  const std::uint64_t planes = bound(conv_plan::forward_problem(a));
  bound_planes(a);
  const std::uint64_t minimal = winograd_floats(a, winograd::forward_problem(a));
  if (minimal > 0) return minimal;
  const std::uint64_t rows = rows_floats(conv_rows::forward_problem(a));
  if (rows > 0) return rows;
  return std::max(planes, lanes_floats(conv_lanes::forward_cut(a), conv_lanes::forward_problem(a),
                                       conv_lanes::scratch_floats));
}

std::uint64_t conv_grad_w_scratch_floats(const ConvArgs& a) {
  if (depthwise::takes(a))
    return depthwise_floats(depthwise::forward_problem(a), depthwise::grad_w_scratch_floats);
  if (pointwise::takes(a)) return static_cast<std::uint64_t>(pointwise::grad_w_scratch_floats(a));
  if (vertical::takes(a)) return 0;
  const std::uint64_t planes = bound(conv_plan::grad_w_problem(a));
  bound_planes(a);
  const winograd::Blocks blocks = winograd::grad_w_blocks(a);
  if (blocks.images > 0) {
    return static_cast<std::uint64_t>(
        winograd::grad_w_floats(winograd::forward_problem(a), blocks));
  }
  const conv_rows::Blocks rows = conv_rows::grad_w_blocks(conv_rows::forward_problem(a));
  if (rows.rows > 0) {
    return static_cast<std::uint64_t>(
        conv_rows::grad_w_floats(conv_rows::forward_problem(a), rows));
  }
  return std::max(planes, lanes_floats(conv_lanes::grad_w_cut(a), conv_lanes::forward_problem(a),
                                       conv_lanes::grad_scratch_floats));
}

std::uint64_t conv_grad_x_scratch_floats(const ConvArgs& a) {
  if (depthwise::takes(a))
    return depthwise_floats(depthwise::backward_problem(a), depthwise::scratch_floats);
  if (pointwise::takes(a)) return static_cast<std::uint64_t>(gemm_scratch_floats(a.filters));
  if (vertical::takes(a)) {
    return static_cast<std::uint64_t>(vertical::scratch_floats(a.filters, a.kernel_h));
  }
  const std::uint64_t planes =
      bound({conv_plan::Mode::correlate, a.images, a.filters,
             largest_backward_axis(a.height, a.out_height, a.kernel_h, a.stride_h, a.dilation_h),
             largest_backward_axis(a.width, a.out_width, a.kernel_w, a.stride_w, a.dilation_w)});
  bound_planes(a);
  const std::uint64_t minimal = winograd_floats(a, winograd::backward_problem(a));
  if (minimal > 0) return minimal;
  const std::uint64_t rows = rows_floats(conv_rows::backward_problem(a));
  if (rows > 0) return rows;
  return std::max(planes, lanes_floats(conv_lanes::backward_cut(a), conv_lanes::backward_problem(a),
                                       conv_lanes::scratch_floats));
}

}  // namespace edge
