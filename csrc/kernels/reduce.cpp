#include "kernels/reduce.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr Index kRun = 4096;     // floats summed in float32 lanes before they go to a double
constexpr Index kColumns = 128;  // sums of neighbouring columns held at once, 1 KiB

Index product(const Index* dims, Index count) {
  Index size = 1;
  for (Index d = 0; d < count; ++d) size *= dims[d];
  return size;
}

// Offset in x of the number-th combination of the first `count` axes, in row-major order.
Index offset_of(Index number, const Index* dims, const Index* strides, Index count) {
  Index offset = 0;
  for (Index d = count - 1; d >= 0; --d) {
    offset += number % dims[d] * strides[d];
    number /= dims[d];
  }
  return offset;
}

float sum_short_run(const float* x, Index size) {
  Vec sums[4] = {};
  Index i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    for (Index v = 0; v < 4; ++v) sums[v] += load(x + i + v * kLanes);
  }
  for (; i + kLanes <= size; i += kLanes) sums[0] += load(x + i);
  float tail = 0.0F;
  for (; i < size; ++i) tail += x[i];
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) + tail;
}

double sum_run(const float* x, Index size) {
  double sum = 0.0;
  for (Index i = 0; i < size; i += kRun) {
    sum += static_cast<double>(sum_short_run(x + i, smaller(kRun, size - i)));
  }
  return sum;
}

// The last reduced axis is contiguous in x: one output at a time, run by run.
void reduce_runs(const ReduceArgs& args, const Worker& worker) {
  const Share share = share_of(product(args.kept_dims, args.kept_ndim), worker);
  const Index last = args.reduced_ndim - 1;
  const Index runs = product(args.reduced_dims, last);
  for (Index i = share.begin; i < share.end; ++i) {
    const float* x = args.x + offset_of(i, args.kept_dims, args.kept_strides, args.kept_ndim);
    double sum = 0.0;
    for (Index r = 0; r < runs; ++r) {
      sum += sum_run(x + offset_of(r, args.reduced_dims, args.reduced_strides, last),
                     args.reduced_dims[last]);
    }
    args.y[i] = static_cast<float>(static_cast<double>(args.scale) * sum);
  }
}

// The last kept axis is contiguous in x: neighbouring outputs together, row by row.
void reduce_columns(const ReduceArgs& args, const Worker& worker) {
  const Index last = args.kept_ndim - 1, width = args.kept_dims[last];
  const Index chunks = ceil_div(width, kColumns);
  const Share share = share_of(product(args.kept_dims, last) * chunks, worker);
  const Index rows = product(args.reduced_dims, args.reduced_ndim);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index outer = unit / chunks, column = unit % chunks * kColumns;
    const Index columns = smaller(kColumns, width - column);
    const float* x = args.x + offset_of(outer, args.kept_dims, args.kept_strides, last) + column;
    double sums[kColumns] = {};
    for (Index r = 0; r < rows; ++r) {
      const float* row =
          x + offset_of(r, args.reduced_dims, args.reduced_strides, args.reduced_ndim);
      for (Index j = 0; j < columns; ++j) sums[j] += static_cast<double>(row[j]);
    }
    float* y = args.y + outer * width + column;
    for (Index j = 0; j < columns; ++j)
      y[j] = static_cast<float>(static_cast<double>(args.scale) * sums[j]);
  }
}

}  // namespace

void reduce_sum(const ReduceArgs& args, const Worker& worker) {
  const bool runs = args.reduced_ndim > 0 && args.reduced_strides[args.reduced_ndim - 1] == 1;
  if (runs || args.kept_ndim == 0) {
    reduce_runs(args, worker);
  } else {
    reduce_columns(args, worker);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
