// Convolution with 1 x 1 taps and its gradients: what conv.h says, as products of matrices.
// Internal to the kernels.
//
//   y[n] (O, P) = W x[n],  d_x[n] (C, P) = W^T d_y[n],  d_w (O, C) = sum_n d_y[n] x[n]^T
//
// with P positions an image, those that strides leave. The columns of all images are one matrix,
// cut into tiles of kTileColumns: a tile inside one image is read and written where it lies, one
// that spans images goes through scratch. d_w is dot products of rows where they lie, or, of short
// rows, a product with x transposed. Bytes moved: the source once, the target once per kGemmDepth
// source channels; for d_w both operands once while a chunk of positions of all channels fits the
// second-level cache.
#pragma once

#include "kernels/declare.h"

namespace edge {
namespace EDGE_ISA {

void pointwise_conv(const ConvArgs& args, const Worker& worker);
void pointwise_grad_x(const ConvArgs& args, const Worker& worker);
void pointwise_grad_w(const ConvArgs& args, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
