// Depthwise 3 x 3 convolutions that keep the plane's size, for planes that are whole vectors: what
// depthwise.h says, without padded copies. Internal to the kernels.
//
// A vector is a piece of a row, or several whole rows of a narrow plane. Its neighbours to the left
// and right are made once, by shuffles at the plane's border, and serve the three rows they belong
// to. Bytes moved: every operand once.
#pragma once

#include "kernels/declare.h"

namespace edge {
namespace EDGE_ISA {

// Each does nothing and answers false where shapes do not suit.
bool folded_conv(const ConvArgs& args, const Worker& worker);
bool folded_grad_x(const ConvArgs& args, const Worker& worker);
bool folded_grad_w(const ConvArgs& args, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
