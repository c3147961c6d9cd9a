// Convolutions by Winograd's minimal filtering (see winograd_plan.h). Internal to the kernels.
//
// Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016: with the source, the
// weights and the sums transformed along each axis, a convolution is one small matrix product a
// point: tiles x channels times channels x targets. Channels lie side by side in a vector. The
// gradient of w is the same with the roles turned: a tile of d_y is the filter, and products are
// summed over all tiles before they are transformed back.
//
// A number that is not finite reaches all of its tile (of d_w: all of its channels).
#pragma once

#include "kernels/correlation.h"
#include "kernels/declare.h"
#include "kernels/winograd_plan.h"

namespace edge {
namespace EDGE_ISA {

struct WinogradCorrelation : Correlation {
  winograd::Problem problem;
  bool turned;  // the last tap first, along both axes
};

// `blocks` as winograd_plan.h chooses them.
void correlate_winograd(const WinogradCorrelation& c, const winograd::Blocks& blocks,
                        const Worker& worker);
void grad_w_winograd(const ConvArgs& args, const winograd::Blocks& blocks, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
