#include "kernels/transpose.h"

#include "kernels/lanes.h"

namespace edge {
namespace EDGE_ISA {

namespace {

// Axes of y without those of size 1, neighbours that x also has next to each other as one.
TransposeArgs merged(const TransposeArgs& args) {
  TransposeArgs m{args.x, args.y, 0, {}, {}};
  for (Index d = 0; d < args.ndim; ++d) {
    if (args.dims[d] == 1) continue;
    const Index last = m.ndim - 1;
    if (m.ndim > 0 && m.strides[last] == args.strides[d] * args.dims[d]) {
      m.dims[last] *= args.dims[d];
      m.strides[last] = args.strides[d];
    } else {
      m.dims[m.ndim] = args.dims[d];
      m.strides[m.ndim++] = args.strides[d];
    }
  }
  if (m.ndim == 0) m.ndim = m.dims[0] = m.strides[0] = 1;
  return m;
}

// The axis along which x is dense: one of size > 1 is, or all of x is one number.
Index dense_axis(const TransposeArgs& args) {
  Index axis = 0;
  while (args.strides[axis] != 1) ++axis;
  return axis;
}

// Where place `number` of all axes but `skipped` and the last begins, in x and in y.
struct Place {
  Index x, y;
};
Place place_of(const TransposeArgs& args, Index skipped, Index number) {
  Place at{0, 0};
  Index y_stride = args.dims[args.ndim - 1];
  for (Index d = args.ndim - 2; d >= 0; y_stride *= args.dims[d--]) {
    if (d == skipped) continue;
    at.x += number % args.dims[d] * args.strides[d];
    at.y += number % args.dims[d] * y_stride;
    number /= args.dims[d];
  }
  return at;
}

void store_part(float* to, Vec values, Index count) {
  if (count >= kLanes) return store(to, values);
  alignas(64) float part[kLanes];
  store(part, values);
  for (Index i = 0; i < count; ++i) to[i] = part[i];
}

// y[i * y_step + j] = x[j * x_step + i] for i < rows <= kLanes, j < columns.
void transpose_band(const float* x, Index x_step, Index rows, Index columns, Index y_step,
                    float* y) {
  for (Index j = 0; j < columns; j += kLanes) {
    const Index count = smaller(kLanes, columns - j);
    Vec square[kLanes];
    for (Index k = 0; k < kLanes; ++k)
      square[k] = k < count ? load_part(x + (j + k) * x_step, rows) : Vec{};
    transpose_square(square);
    for (Index i = 0; i < rows; ++i) store_part(y + i * y_step + j, square[i], count);
  }
}

}  // namespace

void transpose(const TransposeArgs& given, const Worker& worker) {
  const TransposeArgs args = merged(given);
  const Index last = args.ndim - 1, dense = dense_axis(args);
  Index places = 1, y_step = 1;
  for (Index d = 0; d < last; ++d) places *= d == dense ? 1 : args.dims[d];
  for (Index d = dense + 1; d <= last; ++d) y_step *= args.dims[d];
  const Index row = args.dims[last];
  // A band is a vector's width of the dense axis against the whole last axis of y.
  const Index bands = dense == last ? 1 : ceil_div(args.dims[dense], kLanes);
  const Share share = share_of(places * bands, worker);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Place at = place_of(args, dense, unit / bands);
    if (dense == last) {
      copy_run(args.x + at.x, row, args.y + at.y);
      continue;
    }
    const Index first = unit % bands * kLanes;
    transpose_band(args.x + at.x + first, args.strides[last],
                   smaller(kLanes, args.dims[dense] - first), row, y_step,
                   args.y + at.y + first * y_step);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
