// Sliding windows: the eight attributes that convolutions and poolings share, checked against the
// shapes.
#pragma once

#include "core/checks.h"
#include "engine/plan.h"
#include "kernels/conv.h"
#include "kernels/pool.h"

namespace edge {

// Shapes in terms of the forward direction: x (N, C, H, W), w (O, C/groups, KH, KW), y (N, O, OH,
// OW).
ConvArgs conv_args(const Tensor& x, const Tensor& w, const Tensor& y,
                   Span<const std::int32_t> attributes);

// x (N, C, H, W), y (N, C, OH, OW); every window holds a place of x.
PoolArgs pool_args(const Tensor& x, const Tensor& y, Span<const std::int32_t> attributes);

}  // namespace edge
