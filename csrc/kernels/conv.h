// Two-dimensional convolution, its gradients, with groups (depthwise included), strides, dilation
// and asymmetric zero padding. Layout NCHW, weights (O, C/groups, KH, KW), float32, dense.
//
//   y[n, o, i, j]  = bias[o] + sum_{c, u, v} w[o, c, u, v] x[n, c', i*sh - pt + u*dh, j*sw - pl +
//   v*dw] d_x[n, c', ..] = sum of d_y[n, o, i, j] w[o, c, u, v] over the y that read this x
//   d_w[o,c,u,v]   = sum_{n, i, j} d_y[n, o, i, j] x[n, c', i*sh - pt + u*dh, j*sw - pl + v*dw]
//
// with c' = c + C/groups * group(o) and zero outside x; conv can end in max(., 0).
//
// How: no im2col matrix. The source is copied once into zero-padded *planes*, one per channel and
// residue of the stride, so that every kernel tap reads a plane at a constant offset with unit
// stride whatever stride, dilation and padding are. Output rows are then computed over the
// flattened plane (pitch included), vector by vector; the few columns between rows are computed and
// dropped. d_x is the same correlation once per residue of the stride, with offsets reversed. d_w
// is a dot product of d_y, stored with the plane's pitch and zeros between, and the plane at each
// tap's offset. Where the images of a batch fill the lanes of a vector and a part of them fits the
// scratch, each lane takes one image instead (conv_lanes_plan.h), and only the taps inside the
// source are multiplied. With strides of 1, three or five taps and enough channels, fewer products
// are needed than that: winograd.h. Other strides and kernels between many channels are products of
// rows with channels side by side: conv_rows.h. One channel a group, 1 x 1 taps and taps in one
// column have kernels of their own: depthwise.h, pointwise.h, vertical.h.
//
// No output overlaps an input. NaN and infinity travel as in IEEE 754, with two exceptions: a
// non-finite x may reach every d_w of its channel (0 * inf between rows), and what a non-finite w
// makes of the padding, or in depthwise.h of places between strides, is open; winograd.h spreads a
// non-finite number further. d_w is summed per block of images, vector lanes first; the blocks
// depend on shapes and the width of a vector, never on the number of threads. Bytes moved: sources
// once per tile of output rows when the planes fit the cache, outputs once per block of channels.
#pragma once

#include "kernels/gemm.h"
#include "kernels/worker.h"

namespace edge {

// The attributes and shapes of one convolution, in terms of its forward direction.
struct ConvArgs {
  const float* x = nullptr;     // source: x, or d_y for the gradient of x
  const float* w = nullptr;     // weights, or d_y for the gradient of w
  const float* bias = nullptr;  // forward only, may be null
  float* out = nullptr;         // y, d_x or d_w
  Index images = 0, groups = 1, channels = 0, filters = 0;  // channels and filters of one group
  Index height = 0, width = 0, out_height = 0, out_width = 0;
  Index kernel_h = 0, kernel_w = 0;
  Index stride_h = 1, stride_w = 1, pad_top = 0, pad_left = 0;
  Index dilation_h = 1, dilation_w = 1;
  bool relu = false;
  float limit = __builtin_inff();  // of the result after relu; 1 x 1 taps without padding alone
};

// Filters per tile of d_w, for every instruction set.
constexpr Index kGradTileFilters = 6;
// Scratch that blocks are cut to fit, in floats (192 KiB): half a second-level cache of a small
// board.
constexpr Index kConvBudget = 48 * 1024;

// Floats of scratch, independent of the instruction set and, beyond small images, of the batch.
// Throw PlanError (BadAttribute) where a size does not fit 62 bits.
std::uint64_t conv_scratch_floats(const ConvArgs& args);
std::uint64_t conv_grad_x_scratch_floats(const ConvArgs& args);
std::uint64_t conv_grad_w_scratch_floats(const ConvArgs& args);

}  // namespace edge
