// Depthwise convolution and its gradients: what conv.h says, for one channel a group. Internal to
// the kernels.
//
// A 3 x 3 kernel that keeps the plane's size reads planes of whole vectors where they lie
// (depthwise_fold.h). Others are padded in scratch (depthwise_plan.h). A tile is a vector of
// neighbouring columns in a few rows, so that a loaded row serves every tap and every output row it
// belongs to; 3 x 3 and 5 x 5 kernels with strides of 1 and 2 have their taps unrolled. The last
// vector of a row overlaps the one before it. d_w keeps one vector of sums a tap over all images of
// a channel. Bytes moved: every operand once.
#pragma once

#include "kernels/declare.h"

namespace edge {
namespace EDGE_ISA {

void depthwise_conv(const ConvArgs& args, const Worker& worker);
void depthwise_grad_x(const ConvArgs& args, const Worker& worker);
void depthwise_grad_w(const ConvArgs& args, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
