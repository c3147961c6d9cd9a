// A convolution of 1 x 1 taps without padding: when it is taken, and its scratch.
// Shared by the kernels and by the check of a plan, like conv_plan.h.
#pragma once

#include "kernels/conv_plan.h"

namespace edge {
namespace pointwise {

EDGE_STATIC bool takes(const ConvArgs& a) {
  return a.kernel_h == 1 && a.kernel_w == 1 && a.pad_top == 0 && a.pad_left == 0 &&
         (a.out_height - 1) * a.stride_h < a.height && (a.out_width - 1) * a.stride_w < a.width;
}

// Rows of d_y and x shorter than this are too short for dot products: their sums across lanes and
// their jumps from image to image cost more than to transpose x.
constexpr Index kFewPositions = 96;
// Positions of all images that are multiplied at a time then.
constexpr Index kGradDepth = 256;

EDGE_STATIC bool multiplies_rows(const ConvArgs& a) {
  return a.stride_h == 1 && a.stride_w == 1 && a.height * a.width >= kFewPositions;
}

// x transposed, and a tap a position.
EDGE_STATIC Index grad_w_scratch_floats(const ConvArgs& a) {
  if (multiplies_rows(a)) return 0;
  return conv_plan::least(a.images * a.out_height * a.out_width, kGradDepth) *
         (kMaxTileColumns + 2);
}

}  // namespace pointwise
}  // namespace edge
