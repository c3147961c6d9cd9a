#include "kernels/vertical.h"

#include "kernels/lanes.h"
#include "kernels/tile.h"
#include "kernels/vertical_plan.h"

namespace edge {
namespace EDGE_ISA {

namespace {

// target[n, i, r] = sum over c, u of weight(i, c, u) * source[n, c, source row of (r, u)].
struct Product {
  const float* weights;  // (i, c, u) of group g: g * group_step + i * row_step + c * depth_step + u
  Index group_step, row_step, depth_step;
  const float* source;
  const float* bias;  // may be null
  float* target;
  Index images, groups, rows, depth;  // target and source channels of one group
  Index width, source_height, target_height, taps;
  Index stride, pad, dilation;
  bool backward, relu;
};

// The source row that tap u brings to a target row, -1 where there is none.
Index source_row(const Product& p, Index row, Index u) {
  Index at = row * p.stride - p.pad + u * p.dilation;
  if (p.backward) {
    at = row + p.pad - u * p.dilation;
    at = at % p.stride == 0 ? at / p.stride : -1;
  }
  return at < p.source_height ? at : -1;
}

// A tile of one target row, and a block of source channels.
struct Block {
  Index image, group, row, column, columns, channel, channels;
};

// [tap][channel][kTileColumns]; taps without a source row are left out by multiply().
void pack(const Product& p, const Block& b, float* to) {
  const Index plane = p.source_height * p.width;
  const float* from =
      p.source + ((b.image * p.groups + b.group) * p.depth + b.channel) * plane + b.column;
  for (Index u = 0; u < p.taps; ++u) {
    const Index row = source_row(p, b.row, u);
    if (row < 0) continue;
    float* line = to + u * b.channels * kTileColumns;
    for (Index c = 0; c < b.channels; ++c)
      copy_run(from + c * plane + row * p.width, b.columns, line + c * kTileColumns);
  }
}

void multiply(const Product& p, const Block& b, Index row, Index rows, const float* packed,
              float* out, Index pitch) {
  const float* a = p.weights + b.group * p.group_step + row * p.row_step + b.channel * p.depth_step;
  const StridedTaps taps{p.depth_step, kTileColumns};
  bool first = true;
  for (Index u = 0; u < p.taps; ++u) {
    if (source_row(p, b.row, u) < 0) continue;
    const float* line = packed + u * b.channels * kTileColumns;
    if (first) {
      tile_rows<2>(rows, a + u, p.row_step, taps, b.channels, line, out, pitch);
    } else {
      tile_rows<2, true>(rows, a + u, p.row_step, taps, b.channels, line, out, pitch);
    }
    first = false;
  }
  // A target row that no tap reaches.
  for (Index i = 0; first && i < rows; ++i) {
    for (Index j = 0; j < kTileColumns; ++j) out[i * pitch + j] = 0.0F;
  }
}

void finish_rows(const Product& p, const Block& b, Index row, Index rows, const float* sums,
                 float* to) {
  const bool last = b.channel + b.channels == p.depth;
  const float floor = p.relu && last ? 0.0F : -__builtin_inff();
  const Index plane = p.target_height * p.width;
  for (Index i = 0; i < rows; ++i) {
    const float bias = p.bias == nullptr || !last ? 0.0F : p.bias[b.group * p.rows + row + i];
    if (b.channel == 0) {
      finish_run<false>(sums + i * kTileColumns, bias, floor, to + i * plane, b.columns);
    } else {
      finish_run<true>(sums + i * kTileColumns, bias, floor, to + i * plane, b.columns);
    }
  }
}

void multiply_tile(const Product& p, const Block& b, float* packed) {
  const Index plane = p.target_height * p.width;
  const bool direct =
      b.columns == kTileColumns && b.channels == p.depth && p.bias == nullptr && !p.relu;
  alignas(64) float sums[kTileRows * kTileColumns];
  pack(p, b, packed);
  for (Index tile = 0; tile < row_tiles(p.rows); ++tile) {
    const Index row = row_tile_begin(p.rows, tile), rows = row_tile_begin(p.rows, tile + 1) - row;
    float* to = p.target + ((b.image * p.groups + b.group) * p.rows + row) * plane +
                b.row * p.width + b.column;
    if (direct) {
      multiply(p, b, row, rows, packed, to, plane);
    } else {
      multiply(p, b, row, rows, packed, sums, kTileColumns);
      finish_rows(p, b, row, rows, sums, to);
    }
  }
}

void multiply_all(const Product& p, const Worker& worker) {
  const Index block = vertical::channel_block(p.depth, p.taps);
  const Share share = share_of(p.images * p.groups * p.target_height, worker);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index row = unit % p.target_height, group = unit / p.target_height % p.groups;
    const Index image = unit / p.target_height / p.groups;
    for (Index column = 0; column < p.width; column += kTileColumns) {
      for (Index channel = 0; channel < p.depth; channel += block) {
        multiply_tile(p,
                      {image, group, row, column, smaller(kTileColumns, p.width - column), channel,
                       smaller(block, p.depth - channel)},
                      worker.scratch);
      }
    }
  }
}

}  // namespace

void vertical_conv(const ConvArgs& a, const Worker& worker) {
  multiply_all({a.w,
                a.filters * a.channels * a.kernel_h,
                a.channels * a.kernel_h,
                a.kernel_h,
                a.x,
                a.bias,
                a.out,
                a.images,
                a.groups,
                a.filters,
                a.channels,
                a.width,
                a.height,
                a.out_height,
                a.kernel_h,
                a.stride_h,
                a.pad_top,
                a.dilation_h,
                false,
                a.relu},
               worker);
}

void vertical_grad_x(const ConvArgs& a, const Worker& worker) {
  multiply_all({a.w,          a.filters * a.channels * a.kernel_h,
                a.kernel_h,   a.channels * a.kernel_h,
                a.x,          nullptr,
                a.out,        a.images,
                a.groups,     a.channels,
                a.filters,    a.width,
                a.out_height, a.height,
                a.kernel_h,   a.stride_h,
                a.pad_top,    a.dilation_h,
                true,         false},
               worker);
}

}  // namespace EDGE_ISA
}  // namespace edge
