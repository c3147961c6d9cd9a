// Convolutions with channels side by side (see conv_rows_plan.h). Internal to the kernels.
#pragma once

#include "kernels/conv_rows_plan.h"
#include "kernels/correlation.h"
#include "kernels/declare.h"

namespace edge {
namespace EDGE_ISA {

struct RowsCorrelation : Correlation {
  conv_rows::Problem problem;
};

// `blocks` as conv_rows_plan.h chooses them.
void correlate_rows(const RowsCorrelation& c, const conv_rows::Blocks& blocks,
                    const Worker& worker);
void grad_w_rows(const ConvArgs& args, const conv_rows::Blocks& blocks, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
