#include "kernels/conv.h"

#include "kernels/conv_lanes.h"
#include "kernels/conv_plan.h"
#include "kernels/conv_rows.h"
#include "kernels/depthwise.h"
#include "kernels/depthwise_plan.h"
#include "kernels/pack.h"
#include "kernels/pointwise.h"
#include "kernels/pointwise_plan.h"
#include "kernels/tile.h"
#include "kernels/vertical.h"
#include "kernels/vertical_plan.h"
#include "kernels/winograd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

using conv_plan::Blocks;
using conv_plan::Layout;
using conv_plan::Problem;

// `rows` target channels from `problem.channels` source channels, in each group.
struct PlanesCorrelation : Correlation {
  Problem problem;
  Index rows, kernel_w, target_height, target_width;
};

struct Unit {
  Index group, image, images, row, rows;
};

Unit unit_at(const PlanesCorrelation& c, const Blocks& blocks, Index number) {
  const Index bands = ceil_div(c.problem.v.outputs, blocks.rows);
  const Index group = number % c.groups, rest = number / c.groups;
  const Index image = rest / bands * blocks.images, row = rest % bands * blocks.rows;
  return {group, image, smaller(blocks.images, c.problem.images - image), row,
          smaller(blocks.rows, c.problem.v.outputs - row)};
}

void fill_taps(const PlanesCorrelation& c, const Layout& layout, Index channels, Tap* taps) {
  const Problem& p = c.problem;
  for (Index channel = 0; channel < channels; ++channel) {
    for (Index u = 0; u < p.v.taps; ++u) {
      for (Index v = 0; v < p.h.taps; ++v) {
        const Index at = conv_plan::kernel_tap(p.v, u) * c.kernel_w + conv_plan::kernel_tap(p.h, v);
        *taps++ = {static_cast<std::int32_t>(channel * c.channel_step + at),
                   static_cast<std::int32_t>(tap_offset(p, layout, channel, u, v))};
      }
    }
  }
}

// One row of sums to its place in the target: pitch and steps undone. Without a branch in the loop,
// see gemm.cpp.
template <bool ADD>
void finish_row(const float* sums, float bias, float floor, float* to, Index step, Index columns) {
  if (step == 1) {
    EDGE_INDEPENDENT
    for (Index j = 0; j < columns; ++j) {
      const float value = (ADD ? to[j] + sums[j] : sums[j]) + bias;
      to[j] = value < floor ? floor : value;
    }
    return;
  }
  for (Index j = 0; j < columns; ++j) {
    const float value = (ADD ? to[j * step] + sums[j] : sums[j]) + bias;
    to[j * step] = value < floor ? floor : value;
  }
}

void finish_tile(const PlanesCorrelation& c, const Layout& layout, const Unit& unit, Index row,
                 Index rows, const float* sums, Index pitch, bool first, bool last) {
  const conv_plan::Axis &v = c.problem.v, &h = c.problem.h;
  const float floor = c.relu && last ? 0.0F : -__builtin_inff();
  for (Index i = 0; i < rows; ++i) {
    const Index channel = unit.group * c.rows + row + i;
    const float bias = last && c.bias != nullptr ? c.bias[channel] : 0.0F;
    for (Index n = 0; n < unit.images; ++n) {
      const Index plane = (unit.image + n) * c.groups * c.rows + channel;
      float* target = c.target + plane * c.target_height * c.target_width + h.target_start;
      for (Index r = 0; r < unit.rows; ++r) {
        const float* from = sums + i * pitch + n * layout.image + r * layout.pitch;
        float* to = target + (v.target_start + (unit.row + r) * v.target_step) * c.target_width;
        if (first) {
          finish_row<false>(from, bias, floor, to, h.target_step, h.outputs);
        } else {
          finish_row<true>(from, bias, floor, to, h.target_step, h.outputs);
        }
      }
    }
  }
}

void multiply_unit(const PlanesCorrelation& c, const Layout& layout, const Unit& unit,
                   Index channel, Index channels, const float* planes, const Tap* taps,
                   float* sums) {
  const Problem& p = c.problem;
  const Index length = conv_plan::flat_length(p, layout, unit.images, unit.rows);
  const Index pitch = conv_plan::round_up(length, kMaxTileColumns);
  const float* weights = c.weights + unit.group * c.weights_per_group + channel * c.channel_step;
  const Index depth = channels * p.v.taps * p.h.taps;
  for (Index tile = 0; tile < row_tiles(c.rows); ++tile) {
    const Index row = row_tile_begin(c.rows, tile), rows = row_tile_begin(c.rows, tile + 1) - row;
    const float* a = weights + row * c.row_step;
    for (Index f = 0; f < length; f += kTileColumns) {
      if (length - f > kLanes) {
        tile_rows<2>(rows, a, c.row_step, TableTaps{taps}, depth, planes + f, sums + f, pitch);
      } else {
        tile_rows<1>(rows, a, c.row_step, TableTaps{taps}, depth, planes + f, sums + f, pitch);
      }
    }
    finish_tile(c, layout, unit, row, rows, sums, pitch, channel == 0,
                channel + channels == p.channels);
  }
}

void correlate_planes(const PlanesCorrelation& c, const Worker& worker) {
  const Problem& p = c.problem;
  const Blocks blocks = conv_plan::choose_blocks(p);
  const Layout layout = conv_plan::layout_of(p, blocks);
  float* planes = worker.scratch;
  Tap* taps = reinterpret_cast<Tap*>(planes + layout.source_floats);
  float* sums = planes + layout.source_floats + conv_plan::tap_floats(p, blocks);
  fill_taps(c, layout, blocks.channels, taps);
  const Index units =
      ceil_div(p.images, blocks.images) * ceil_div(p.v.outputs, blocks.rows) * c.groups;
  const Share share = share_of(units, worker);
  for (Index number = share.begin; number < share.end; ++number) {
    const Unit unit = unit_at(c, blocks, number);
    for (Index channel = 0; channel < p.channels; channel += blocks.channels) {
      const Index channels = smaller(blocks.channels, p.channels - channel);
      const PackRange range{unit.image, unit.images, unit.group * p.channels + channel, channels,
                            unit.row};
      pack_planes(p, layout, c.source, p.channels * c.groups, range, planes);
      multiply_unit(c, layout, unit, channel, channels, planes, taps, sums);
    }
  }
}

Correlation forward_correlation(const ConvArgs& a) {
  const Index taps = a.kernel_h * a.kernel_w, filter = a.channels * taps;
  return {a.x, a.w, a.bias, a.out, a.groups, filter, taps, a.filters * filter, a.relu};
}
Correlation backward_correlation(const ConvArgs& a) {
  const Index taps = a.kernel_h * a.kernel_w, filter = a.channels * taps;
  return {a.x, a.w, nullptr, a.out, a.groups, taps, filter, a.filters * filter, false};
}

}  // namespace

void conv(const ConvArgs& a, const Worker& worker) {
  if (depthwise::takes(a)) return depthwise_conv(a, worker);
  if (pointwise::takes(a)) return pointwise_conv(a, worker);
  if (vertical::takes(a)) return vertical_conv(a, worker);
  const Correlation c = forward_correlation(a);
  const winograd::Problem minimal = winograd::forward_problem(a);
  const winograd::Blocks tiles = winograd::correlate_blocks(a, minimal);
  if (tiles.images > 0) return correlate_winograd({c, minimal, false}, tiles, worker);
  const conv_rows::Problem dense = conv_rows::forward_problem(a);
  const conv_rows::Blocks rows = conv_rows::correlate_blocks(dense);
  if (rows.rows > 0) return correlate_rows({c, dense}, rows, worker);
  const Index cut = conv_lanes::fills(a.images, kLanes) ? conv_lanes::forward_cut(a) : 0;
  if (cut > 0) return correlate_lanes({c, conv_lanes::forward_problem(a)}, cut, worker);
  correlate_planes(
      {c, conv_plan::forward_problem(a), a.filters, a.kernel_w, a.out_height, a.out_width}, worker);
}

void conv_grad_x(const ConvArgs& a, const Worker& worker) {
  if (depthwise::takes(a)) return depthwise_grad_x(a, worker);
  if (pointwise::takes(a)) return pointwise_grad_x(a, worker);
  if (vertical::takes(a)) return vertical_grad_x(a, worker);
  const Correlation c = backward_correlation(a);
  const winograd::Problem minimal = winograd::backward_problem(a);
  const winograd::Blocks tiles = winograd::correlate_blocks(a, minimal);
  if (tiles.images > 0) return correlate_winograd({c, minimal, true}, tiles, worker);
  const conv_rows::Problem dense = conv_rows::backward_problem(a);
  const conv_rows::Blocks rows = conv_rows::correlate_blocks(dense);
  if (rows.rows > 0) return correlate_rows({c, dense}, rows, worker);
  const Index cut = conv_lanes::fills(a.images, kLanes) ? conv_lanes::backward_cut(a) : 0;
  if (cut > 0) return correlate_lanes({c, conv_lanes::backward_problem(a)}, cut, worker);
  for (Index row = 0; row < smaller(a.stride_h, a.height); ++row) {
    for (Index column = 0; column < smaller(a.stride_w, a.width); ++column) {
      correlate_planes({c, conv_plan::backward_problem(a, row, column), a.channels, a.kernel_w,
                        a.height, a.width},
                       worker);
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
