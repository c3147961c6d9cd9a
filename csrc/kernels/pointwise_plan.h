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
// Below a vector of positions, d_w is better off with one image a lane.
EDGE_STATIC bool takes_grad_w(const ConvArgs& a, Index lanes) {
  return takes(a) && a.height * a.width >= lanes;
}

}  // namespace pointwise
}  // namespace edge
