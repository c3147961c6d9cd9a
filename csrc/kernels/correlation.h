// What every way to compute a correlation works on. Internal to the kernels.
#pragma once

#include "kernels/conv.h"

namespace edge {
namespace EDGE_ISA {

// Target channels from source channels, in each group: of y from x, or of d_x from d_y.
struct Correlation {
  const float* source;
  const float* weights;  // of (target i, source c, tap): i * row_step + c * channel_step + tap
  const float* bias;     // may be null
  float* target;
  Index groups, row_step, channel_step, weights_per_group;
  bool relu;
};

}  // namespace EDGE_ISA
}  // namespace edge
