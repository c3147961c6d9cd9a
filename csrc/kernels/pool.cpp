#include "kernels/pool.h"

#include "kernels/pool_pairs.h"
#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

// The places of one window that lie inside [0, size): taps [begin, end) of the window that starts
// at `start`.
struct Taps {
  Index start, begin, end;
};

Taps taps_at(Index position, Index stride, Index pad, Index kernel, Index dilation, Index size) {
  const Index start = position * stride - pad;
  const Index begin = start >= 0 ? 0 : ceil_div(-start, dilation);
  const Index end = start >= size ? 0 : smaller(kernel, ceil_div(size - start, dilation));
  return {start, begin, larger(begin, end)};
}

Taps rows_at(const PoolArgs& a, Index i) {
  return taps_at(i, a.stride_h, a.pad_top, a.kernel_h, a.dilation_h, a.height);
}
Taps columns_at(const PoolArgs& a, Index j) {
  return taps_at(j, a.stride_w, a.pad_left, a.kernel_w, a.dilation_w, a.width);
}

// Strictly better, so the first maximum stays; a NaN beats every number and is beaten by nothing.
bool beats(float value, float best) { return value > best || (value != value && best == best); }

void maxpool_place(const PoolArgs& a, const float* x, const Taps& rows, const Taps& columns,
                   Index to) {
  float best = 0.0F;
  Index index = -1;
  for (Index u = rows.begin; u < rows.end; ++u) {
    const float* row = x + (rows.start + u * a.dilation_h) * a.width;
    for (Index v = columns.begin; v < columns.end; ++v) {
      const float value = row[columns.start + v * a.dilation_w];
      if (index >= 0 && !beats(value, best)) continue;
      best = value;
      index = u * a.kernel_w + v;
    }
  }
  a.out[to] = best;
  if (a.index8 != nullptr) {
    a.index8[to] = static_cast<std::uint8_t>(index);
  } else {
    a.index32[to] = static_cast<std::int32_t>(index);
  }
}

// Adds one d_y where its index points, if that is a place of x.
void scatter(const PoolArgs& a, Index i, Index j, Index index, float d_y, float* d_x) {
  const Index row = i * a.stride_h - a.pad_top + index / a.kernel_w * a.dilation_h;
  const Index column = j * a.stride_w - a.pad_left + index % a.kernel_w * a.dilation_w;
  const bool inside = index >= 0 && index < a.kernel_h * a.kernel_w && row >= 0 && row < a.height &&
                      column >= 0 && column < a.width;
  if (inside) d_x[row * a.width + column] += d_y;
}

float divisor(const PoolArgs& a, const Taps& rows, const Taps& columns) {
  const Index places = a.count_include_pad
                           ? a.kernel_h * a.kernel_w
                           : (rows.end - rows.begin) * (columns.end - columns.begin);
  return static_cast<float>(places);
}

}  // namespace

void maxpool(const PoolArgs& a, const Worker& worker) {
  const Share share = share_of(a.planes, worker);
  for (Index plane = share.begin; plane < share.end; ++plane) {
    const float* x = a.in + plane * a.height * a.width;
    if (takes_pairs(a)) {
      a.kernel_h == 2 ? maxpool_pairs<2>(a, plane) : maxpool_pairs<1>(a, plane);
      continue;
    }
    for (Index i = 0; i < a.out_height; ++i) {
      const Taps rows = rows_at(a, i);
      for (Index j = 0; j < a.out_width; ++j) {
        maxpool_place(a, x, rows, columns_at(a, j), (plane * a.out_height + i) * a.out_width + j);
      }
    }
  }
}

void maxpool_grad(const PoolArgs& a, const Worker& worker) {
  const Share share = share_of(a.planes, worker);
  for (Index plane = share.begin; plane < share.end; ++plane) {
    float* d_x = a.out + plane * a.height * a.width;
    if (takes_pairs(a)) {
      a.kernel_h == 2 ? maxpool_grad_pairs<2>(a, plane) : maxpool_grad_pairs<1>(a, plane);
      continue;
    }
    for (Index i = 0; i < a.height * a.width; ++i) d_x[i] = 0.0F;
    for (Index i = 0; i < a.out_height; ++i) {
      for (Index j = 0; j < a.out_width; ++j) {
        const Index at = (plane * a.out_height + i) * a.out_width + j;
        scatter(a, i, j, a.index8 != nullptr ? a.index8[at] : a.index32[at], a.in[at], d_x);
      }
    }
  }
}

void avgpool(const PoolArgs& a, const Worker& worker) {
  const Share share = share_of(a.planes, worker);
  for (Index plane = share.begin; plane < share.end; ++plane) {
    const float* x = a.in + plane * a.height * a.width;
    for (Index i = 0; i < a.out_height; ++i) {
      const Taps rows = rows_at(a, i);
      for (Index j = 0; j < a.out_width; ++j) {
        const Taps columns = columns_at(a, j);
        float sum = 0.0F;
        for (Index u = rows.begin; u < rows.end; ++u) {
          const float* row = x + (rows.start + u * a.dilation_h) * a.width;
          for (Index v = columns.begin; v < columns.end; ++v)
            sum += row[columns.start + v * a.dilation_w];
        }
        a.out[(plane * a.out_height + i) * a.out_width + j] = sum / divisor(a, rows, columns);
      }
    }
  }
}

void avgpool_grad(const PoolArgs& a, const Worker& worker) {
  const Share share = share_of(a.planes, worker);
  for (Index plane = share.begin; plane < share.end; ++plane) {
    float* d_x = a.out + plane * a.height * a.width;
    for (Index i = 0; i < a.height * a.width; ++i) d_x[i] = 0.0F;
    for (Index i = 0; i < a.out_height; ++i) {
      const Taps rows = rows_at(a, i);
      for (Index j = 0; j < a.out_width; ++j) {
        const Taps columns = columns_at(a, j);
        const float part =
            a.in[(plane * a.out_height + i) * a.out_width + j] / divisor(a, rows, columns);
        for (Index u = rows.begin; u < rows.end; ++u) {
          float* row = d_x + (rows.start + u * a.dilation_h) * a.width;
          for (Index v = columns.begin; v < columns.end; ++v)
            row[columns.start + v * a.dilation_w] += part;
        }
      }
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
