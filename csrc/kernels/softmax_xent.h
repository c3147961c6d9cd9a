// Softmax cross-entropy of rows first .. first + B of a batch of L, as their part of the batch's
// mean over the rows whose label is not -1.
//
//   probs[i, :] = exp(logits[i, :] - max) / sum          (every row, labelled or not)
//   loss        = sum over labelled i of log(sum) - (logits[i, label] - max), over `labelled`
//   d_logits    = d_loss / labelled * (probs - onehot(label)); rows with label -1 give zero
//
// `labelled` is the number of the L labels that are not -1; where it is 0 loss and gradient are 0.
// With first = 0 and B = L this is the mean itself; the parts of slices add up to it.
// logits, probs, d_logits (B, C) float32; labels (L) int32 in [-1, C); loss, d_loss one float32.
// The sum over rows is in float64. Stable: no exp overflows for finite logits. A NaN makes its row
// and the loss NaN. Labels out of range were refused before the step; should one change meanwhile
// it counts as no class of its row and nothing is read or written outside the arrays. Bytes moved:
// every operand once or twice.
#pragma once

#include <cstdint>

#include "kernels/worker.h"

namespace edge {

struct SoftmaxXentArgs {
  const float* in = nullptr;  // logits, or probs for the gradient
  const std::int32_t* labels = nullptr;
  const float* d_loss = nullptr;  // gradient only
  float* loss = nullptr;          // forward only
  float* out = nullptr;           // probs, or d_logits
  Index first = 0, rows = 0, labelled_rows = 0, classes = 0;
};

}  // namespace edge
