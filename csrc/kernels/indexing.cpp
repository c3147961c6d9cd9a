#include "kernels/indexing.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr Index kGrain = 16;

// The part of one run of the box whose places of y lie in [begin, end).
void copy_run(const std::uint32_t* x, Index x_step, std::uint32_t* y, Index at, Index y_step,
              Index count, Index begin, Index end) {
  if (y_step == 1) {
    const Index first = larger(0, begin - at), last = smaller(count, end - at);
    if (x_step == 1) {
      for (Index i = first; i < last; ++i) y[at + i] = x[i];
    } else {
      for (Index i = first; i < last; ++i) y[at + i] = x[i * x_step];
    }
    return;
  }
  for (Index i = 0; i < count; ++i) {
    const Index place = at + i * y_step;
    if (place >= begin && place < end) y[place] = x[i * x_step];
  }
}

// Every worker walks the box's runs and writes those places that are its own, so that fill and box
// need no barrier between them.
void copy_box(const StridedCopyArgs& args, Index begin, Index end) {
  const Index last = args.ndim - 1;
  Index runs = 1;
  for (Index d = 0; d < last; ++d) runs *= args.dims[d];
  for (Index r = 0; r < runs; ++r) {
    Index rest = r, x = 0, y = args.y_offset;
    for (Index d = last - 1; d >= 0; --d) {
      const Index i = rest % args.dims[d];
      rest /= args.dims[d];
      x += i * args.x_strides[d];
      y += i * args.y_strides[d];
    }
    copy_run(args.x + x, args.x_strides[last], args.y, y, args.y_strides[last], args.dims[last],
             begin, end);
  }
}

bool in_range(std::int32_t index, Index n) { return index >= 0 && index < n; }

void add_row(const float* from, float* to, Index size) {
  EDGE_INDEPENDENT
  for (Index i = 0; i < size; ++i) to[i] += from[i];
}

std::int32_t int_of(float x, float low, float high) {
  // The comparisons are false for a NaN, which becomes 0.
  return x >= high  ? static_cast<std::int32_t>(high == 255.0F ? 255 : 2147483647)
         : x > low  ? static_cast<std::int32_t>(x)
         : x <= low ? static_cast<std::int32_t>(low)
                    : 0;
}

void cast_one(const CastArgs& args, Index i) {
  float number = 0.0F;
  std::int32_t whole = 0;
  if (args.from == Element::float32) {
    number = static_cast<const float*>(args.x)[i];
    whole = args.to == Element::uint8 ? int_of(number, 0.0F, 255.0F)
                                      : int_of(number, -2147483648.0F, 2147483648.0F);
  } else {
    whole = args.from == Element::int32 ? static_cast<const std::int32_t*>(args.x)[i]
                                        : static_cast<const std::uint8_t*>(args.x)[i];
    number = static_cast<float>(whole);
  }
  if (args.to == Element::float32) {
    static_cast<float*>(args.y)[i] = number;
  } else if (args.to == Element::int32) {
    static_cast<std::int32_t*>(args.y)[i] = whole;
  } else {
    const std::int32_t byte = whole < 0 ? 0 : whole > 255 ? 255 : whole;
    static_cast<std::uint8_t*>(args.y)[i] = static_cast<std::uint8_t>(byte);
  }
}

// One entry of the index an element: a column (outer, inner) is one worker's.
void scatter_elements(const GatherArgs& args, const Worker& worker) {
  const Share share = share_of(args.outer * args.inner, worker);
  for (Index i = share.begin; i < share.end; ++i) {
    const Index outer = i / args.inner, inner = i % args.inner;
    float* y = args.y + outer * args.n * args.inner + inner;
    for (Index j = 0; j < args.n; ++j) y[j * args.inner] = 0.0F;
    for (Index k = 0; k < args.k; ++k) {
      const Index at = (outer * args.k + k) * args.inner + inner;
      if (in_range(args.index[at], args.n)) y[args.index[at] * args.inner] += args.x[at];
    }
  }
}

// Rows: a range of the inner columns of one outer is one worker's.
void scatter_rows(const GatherArgs& args, const Worker& worker) {
  const Share share = share_of(args.outer * args.inner, worker);
  for (Index at = share.begin; at < share.end;) {
    const Index outer = at / args.inner, first = at % args.inner;
    const Index width = smaller(args.inner - first, share.end - at);
    float* y = args.y + outer * args.n * args.inner + first;
    for (Index j = 0; j < args.n; ++j) {
      for (Index i = 0; i < width; ++i) y[j * args.inner + i] = 0.0F;
    }
    const float* x = args.x + outer * args.k * args.inner + first;
    for (Index k = 0; k < args.k; ++k) {
      if (in_range(args.index[k], args.n))
        add_row(x + k * args.inner, y + args.index[k] * args.inner, width);
    }
    at += width;
  }
}

}  // namespace

void strided_copy(const StridedCopyArgs& args, const Worker& worker) {
  const Share grains = share_of(ceil_div(args.size, kGrain), worker);
  const Index begin = smaller(args.size, grains.begin * kGrain),
              end = smaller(args.size, grains.end * kGrain);
  if (args.base == nullptr && !args.covers) {
    for (Index i = begin; i < end; ++i) args.y[i] = args.fill;
  } else if (args.base != nullptr && args.base != args.y) {
    for (Index i = begin; i < end; ++i) args.y[i] = args.base[i];
  }
  copy_box(args, begin, end);
}

void gather(const GatherArgs& args, const Worker& worker) {
  const Share share = share_of(args.outer * args.k, worker);
  for (Index row = share.begin; row < share.end; ++row) {
    const float* x = args.x + row / args.k * args.n * args.inner;
    float* y = args.y + row * args.inner;
    if (args.elements) {
      const std::int32_t* index = args.index + row * args.inner;
      for (Index i = 0; i < args.inner; ++i)
        y[i] = in_range(index[i], args.n) ? x[index[i] * args.inner + i] : 0.0F;
      continue;
    }
    const std::int32_t index = args.index[row % args.k];
    if (in_range(index, args.n)) {
      for (Index i = 0; i < args.inner; ++i) y[i] = x[index * args.inner + i];
    } else {
      for (Index i = 0; i < args.inner; ++i) y[i] = 0.0F;
    }
  }
}

void scatter_add(const GatherArgs& args, const Worker& worker) {
  args.elements ? scatter_elements(args, worker) : scatter_rows(args, worker);
}

void cast(const CastArgs& args, const Worker& worker) {
  const Share grains = share_of(ceil_div(args.size, 4 * kGrain), worker);  // of uint8: one line
  const Index end = smaller(args.size, grains.end * 4 * kGrain);
  for (Index i = grains.begin * 4 * kGrain; i < end; ++i) cast_one(args, i);
}

void cumsum(const CumsumArgs& args, const Worker& worker) {
  const Share share = share_of(args.outer * args.inner, worker);
  for (Index i = share.begin; i < share.end; ++i) {
    const Index begin = i / args.inner * args.size * args.inner + i % args.inner;
    double sum = 0.0;
    for (Index j = 0; j < args.size; ++j) {
      const Index at = begin + (args.reverse ? args.size - 1 - j : j) * args.inner;
      const double before = sum;
      sum += static_cast<double>(args.x[at]);
      args.y[at] = static_cast<float>(args.exclusive ? before : sum);
    }
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
