// Sampled softmax outside plans; see kernels/sampled_softmax.h for what is computed.
#pragma once

#include "core/workspace.h"
#include "kernels/sampled_softmax.h"

namespace edge {

// Fills in the layout and runs all phases. Everything else is set and in range.
//
// A class behind the positives whose row is also a positive's is left out. Throws
// std::invalid_argument where two positives have one row, or with `updated` any two classes that
// are not left out. Beside the layout's, memory of 8 to 16 bytes a class or 64 KiB,
// with hits 4 more.
void sampled_softmax(SampledSoftmaxArgs args, Workspace& workspace);

}  // namespace edge
