// Convolution with KH x 1 taps and its gradients: what conv.h says. Internal to the kernels.
//
// A row of the target is the sum, over the taps that lie inside, of a product of matrices: weights
// of one tap times a row of all source channels. d_w is dot products of rows where they lie
// (pointwise.h), tap by tap.
// Bytes moved: the source KH times from the cache, the target once per block of source channels.
#pragma once

#include "kernels/declare.h"

namespace edge {
namespace EDGE_ISA {

void vertical_conv(const ConvArgs& args, const Worker& worker);
void vertical_grad_x(const ConvArgs& args, const Worker& worker);
void vertical_grad_w(const ConvArgs& args, const Worker& worker);  // in pointwise_grad_w.cpp

}  // namespace EDGE_ISA
}  // namespace edge
