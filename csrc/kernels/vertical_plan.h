// A convolution whose taps are one above the other (KH x 1, as the temporal half of a (2+1)D
// convolution): when it is taken, and its scratch. Shared by the kernels and by the check of a
// plan, like conv_plan.h.
#pragma once

#include "kernels/conv_plan.h"

namespace edge {
namespace vertical {

// Rows that fill a tile of any instruction set; so few taps that a block holds 16 channels or more.
EDGE_STATIC bool takes(const ConvArgs& a) {
  return a.kernel_w == 1 && a.stride_w == 1 && a.width == a.out_width &&
         a.width >= kMaxTileColumns && a.kernel_h <= 32;
}

// Source channels that are packed at a time, one row of a tile for every tap.
EDGE_STATIC Index channel_block(Index channels, Index taps) {
  return conv_plan::least(channels, kGemmDepth / taps);
}
EDGE_STATIC Index scratch_floats(Index channels, Index taps) {
  return channel_block(channels, taps) * taps * kMaxTileColumns;
}

}  // namespace vertical
}  // namespace edge
