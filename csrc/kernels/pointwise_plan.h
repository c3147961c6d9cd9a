// A convolution of 1 x 1 taps without strides and padding: when it is taken, and its scratch.
// Shared by the kernels and by the check of a plan, like conv_plan.h.
#pragma once

#include "kernels/conv_plan.h"

namespace edge {
namespace pointwise {

EDGE_STATIC bool takes(const ConvArgs& a) {
  return a.kernel_h == 1 && a.kernel_w == 1 && a.stride_h == 1 && a.stride_w == 1 &&
         a.height == a.out_height && a.width == a.out_width;
}

// Rows of d_y and x shorter than this are too short for dot products: their sums across lanes and
// their jumps from image to image cost more than to transpose x.
constexpr Index kFewPositions = 96;
// Positions of all images that are multiplied at a time then.
constexpr Index kGradDepth = 256;

// x transposed, and a tap a position.
EDGE_STATIC Index grad_w_scratch_floats(const ConvArgs& a) {
  if (a.height * a.width >= kFewPositions) return 0;
  return conv_plan::least(a.images * a.height * a.width, kGradDepth) * (kMaxTileColumns + 2);
}

}  // namespace pointwise
}  // namespace edge
