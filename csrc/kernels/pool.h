// Max and average pooling over windows of (N, C, H, W), and their gradients.
//
//   maxpool:      y = max over the window's places inside x; index = kh * kernel_w + kw of the
//   *first* maximum maxpool_grad: d_x = sum of the d_y whose index points here avgpool:      y =
//   sum over the window's places inside x / count, count = kernel_h * kernel_w where
//                 count_include_pad, else the places inside x
//   avgpool_grad: d_x = sum of d_y / count over the windows that hold this place
//
// float32; index is uint8, or int32 when a window has more than 256 places. Every window must hold
// a place of x. A NaN counts as greater than any number, and the first one wins, so it is seen in
// y. maxpool_grad trusts no index: one that points outside the window or x adds nothing. Windows
// that overlap are summed by increasing output position. Bytes moved: every operand once.
#pragma once

#include <cstdint>

#include "kernels/worker.h"

namespace edge {

struct PoolArgs {
  const float* in = nullptr;       // x, or d_y for a gradient
  float* out = nullptr;            // y, or d_x
  std::uint8_t* index8 = nullptr;  // one of the two for max pooling
  std::int32_t* index32 = nullptr;
  Index planes = 0;  // N * C
  Index height = 0, width = 0, out_height = 0, out_width = 0;
  Index kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  Index pad_top = 0, pad_left = 0, dilation_h = 1, dilation_w = 1;
  bool count_include_pad = false;
};

}  // namespace edge
