// Correlation of many small images, one image a vector lane (see conv_lanes_plan.h). Internal to
// the kernels.
#pragma once

#include "kernels/conv_lanes_plan.h"
#include "kernels/correlation.h"
#include "kernels/declare.h"

namespace edge {
namespace EDGE_ISA {

struct LanesCorrelation : Correlation {
  conv_lanes::Problem problem;
};

// At most `most_cut` positions a part, from conv_lanes_plan.h.
void correlate_lanes(const LanesCorrelation& c, Index most_cut, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
