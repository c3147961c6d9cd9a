// Convolutions with channels side by side (see conv_rows_plan.h). Internal to the kernels.
#pragma once

#include "kernels/conv_rows_plan.h"
#include "kernels/declare.h"

namespace edge {
namespace EDGE_ISA {

// `targets` target channels from `channels` source channels, in each group.
struct RowsCorrelation {
  conv_rows::Problem problem;
  const float* source;
  const float* weights;  // of (target i, source c, tap): i * row_step + c * channel_step + tap
  const float* bias;     // may be null
  float* target;
  Index groups, row_step, channel_step, weights_per_group;
  bool relu;
};

// `blocks` as conv_rows_plan.h chooses them.
void correlate_rows(const RowsCorrelation& c, const conv_rows::Blocks& blocks,
                    const Worker& worker);
void grad_w_rows(const ConvArgs& args, const conv_rows::Blocks& blocks, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
