#include "kernels/softmax_xent.h"

#include <math.h>

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

struct RowSum {
  double log_sum;  // of exp(logit - peak)
  double peak;
};

// Writes one row of probabilities. log_sum and peak stay apart: their sum would drown log_sum in a
// large peak.
RowSum softmax_row(const float* logits, Index classes, float* probs) {
  float peak = logits[0];
  for (Index c = 1; c < classes; ++c) peak = logits[c] > peak ? logits[c] : peak;
  double sum = 0.0;
  for (Index c = 0; c < classes; ++c) {
    const float e = ::expf(logits[c] - peak);
    probs[c] = e;
    sum += static_cast<double>(e);
  }
  const auto scale = static_cast<float>(1.0 / sum);
  for (Index c = 0; c < classes; ++c) probs[c] *= scale;
  return {::log(sum), static_cast<double>(peak)};
}

bool counts(std::int32_t label, Index classes) { return label >= 0 && label < classes; }

Index labelled_of(const SoftmaxXentArgs& args) {
  Index labelled = 0;
  for (Index row = 0; row < args.labelled_rows; ++row)
    labelled += counts(args.labels[row], args.classes) ? 1 : 0;
  return labelled;
}

}  // namespace

void softmax_xent(const SoftmaxXentArgs& args, const Worker& worker) {
  if (worker.index != 0) return;  // the loss is one sum in one order
  double total = 0.0;
  const Index labelled = labelled_of(args);
  for (Index row = 0; row < args.rows; ++row) {
    const float* logits = args.in + row * args.classes;
    const RowSum row_sum = softmax_row(logits, args.classes, args.out + row * args.classes);
    const std::int32_t label = args.labels[args.first + row];
    if (!counts(label, args.classes)) continue;
    total += row_sum.log_sum + (row_sum.peak - static_cast<double>(logits[label]));
  }
  *args.loss = labelled == 0 ? 0.0F : static_cast<float>(total / static_cast<double>(labelled));
}

void softmax_xent_grad(const SoftmaxXentArgs& args, const Worker& worker) {
  const Index labelled = labelled_of(args);
  const float scale = labelled == 0 ? 0.0F : *args.d_loss / static_cast<float>(labelled);
  const Share share = share_of(args.rows, worker);
  for (Index row = share.begin; row < share.end; ++row) {
    const float* probs = args.in + row * args.classes;
    float* d_logits = args.out + row * args.classes;
    const std::int32_t label = args.labels[args.first + row];
    if (!counts(label, args.classes)) {
      for (Index c = 0; c < args.classes; ++c) d_logits[c] = 0.0F;
      continue;
    }
    for (Index c = 0; c < args.classes; ++c) d_logits[c] = scale * probs[c];
    d_logits[label] = scale * (probs[label] - 1.0F);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
