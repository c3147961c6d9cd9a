// Maxima and minima over axes, where the first one lies along an axis, and the k greatest or
// smallest. A NaN counts as the extreme one; of equals the first counts. float32, no overlap of
// inputs and outputs. Bytes moved: x once (topk: once, and its outputs k times), y once.
#pragma once

#include "kernels/reduce.h"
#include "kernels/worker.h"

namespace edge {

struct MinmaxArgs {
  ReduceArgs reduce;  // x, y and the walk; the scale is not used
  bool smallest = false;
};

// x (outer, size, inner).
struct ArgminmaxArgs {
  const float* x = nullptr;
  std::int32_t* index = nullptr;  // (outer, inner)
  Index outer = 0, size = 0, inner = 0;
  bool smallest = false;
};

// values and index (outer, k, inner), the most extreme first.
struct TopkArgs {
  const float* x = nullptr;
  float* values = nullptr;
  std::int32_t* index = nullptr;
  Index outer = 0, size = 0, inner = 0, k = 0;
  bool smallest = false;
};

}  // namespace edge
