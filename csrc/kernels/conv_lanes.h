// Correlation of many small images, one image a vector lane (see conv_lanes_plan.h). Internal to
// the kernels.
#pragma once

#include "kernels/conv_lanes_plan.h"
#include "kernels/declare.h"

namespace edge {
namespace EDGE_ISA {

// `rows` target channels from `channels` source channels, in each group.
struct LanesCorrelation {
  conv_lanes::Problem problem;
  const float* source;
  const float* weights;  // of (target i, source c, tap): i * row_step + c * channel_step + tap
  const float* bias;     // may be null
  float* target;
  Index groups, row_step, channel_step, weights_per_group;
  bool relu;
};

// At most `most_cut` positions a part, from conv_lanes_plan.h.
void correlate_lanes(const LanesCorrelation& c, Index most_cut, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
