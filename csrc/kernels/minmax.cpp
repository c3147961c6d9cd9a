#include "kernels/minmax.h"

#include "kernels/simd.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr Index kColumns = 256;

struct Max {
  static bool better(float a, float b) { return (a > b) | (a != a); }
};
struct Min {
  static bool better(float a, float b) { return (a < b) | (a != a); }
};

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

// In lanes that each see every kLanes-th element: a maximum does not depend on the order.
template <class Op>
float best_of_run(const float* x, Index size, float best) {
  float lanes[EDGE_VECTOR_FLOATS];
  for (Index j = 0; j < kLanes; ++j) lanes[j] = best;
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (Index j = 0; j < kLanes; ++j)
      lanes[j] = Op::better(x[i + j], lanes[j]) ? x[i + j] : lanes[j];
  }
  for (Index j = 0; j < kLanes; ++j) best = Op::better(lanes[j], best) ? lanes[j] : best;
  for (; i < size; ++i) best = Op::better(x[i], best) ? x[i] : best;
  return best;
}

// The last reduced axis is contiguous in x: one output at a time, run by run.
template <class Op>
void by_runs(const ReduceArgs& args, const Worker& worker) {
  const Share share = share_of(product(args.kept_dims, args.kept_ndim), worker);
  const Index last = args.reduced_ndim - 1, runs = product(args.reduced_dims, last);
  for (Index i = share.begin; i < share.end; ++i) {
    const float* x = args.x + offset_of(i, args.kept_dims, args.kept_strides, args.kept_ndim);
    float best = *x;
    for (Index r = 0; r < runs; ++r) {
      const float* run = x + offset_of(r, args.reduced_dims, args.reduced_strides, last);
      best = best_of_run<Op>(run, args.reduced_dims[last], best);
    }
    args.y[i] = best;
  }
}

// The last kept axis is contiguous in x: neighbouring outputs together, row by row.
template <class Op>
void by_columns(const ReduceArgs& args, const Worker& worker) {
  const Index last = args.kept_ndim - 1, width = args.kept_dims[last];
  const Index chunks = ceil_div(width, kColumns),
              rows = product(args.reduced_dims, args.reduced_ndim);
  const Share share = share_of(product(args.kept_dims, last) * chunks, worker);
  for (Index unit = share.begin; unit < share.end; ++unit) {
    const Index outer = unit / chunks, column = unit % chunks * kColumns;
    const Index columns = smaller(kColumns, width - column);
    const float* x = args.x + offset_of(outer, args.kept_dims, args.kept_strides, last) + column;
    float* y = args.y + outer * width + column;
    for (Index j = 0; j < columns; ++j) y[j] = x[j];
    for (Index r = 1; r < rows; ++r) {
      const float* row =
          x + offset_of(r, args.reduced_dims, args.reduced_strides, args.reduced_ndim);
      EDGE_INDEPENDENT
      for (Index j = 0; j < columns; ++j) {
        const float now = row[j], before = y[j];
        y[j] = Op::better(now, before) ? now : before;
      }
    }
  }
}

template <class Op>
void reduce(const ReduceArgs& args, const Worker& worker) {
  // Along a broadcast or merged walk the innermost reduced stride is 1 exactly where runs exist.
  if (args.reduced_strides[args.reduced_ndim - 1] == 1 || args.kept_ndim == 0) {
    by_runs<Op>(args, worker);
  } else {
    by_columns<Op>(args, worker);
  }
}

template <class Op>
void first_best(const ArgminmaxArgs& args, const Worker& worker) {
  const Share share = share_of(args.outer * args.inner, worker);
  for (Index i = share.begin; i < share.end; ++i) {
    const float* x = args.x + i / args.inner * args.size * args.inner + i % args.inner;
    float best = *x;
    Index place = 0;
    // Nothing is better than a NaN: the first one stays.
    for (Index j = 1; j < args.size && best == best; ++j) {
      const float now = x[j * args.inner];
      if (!Op::better(now, best)) continue;
      best = now;
      place = j;
    }
    args.index[i] = static_cast<std::int32_t>(place);
  }
}

// Insertion into the k best so far, which stand in the outputs.
template <class Op>
void best_k(const TopkArgs& args, const Worker& worker) {
  const Index step = args.inner;
  const Share share = share_of(args.outer * args.inner, worker);
  for (Index i = share.begin; i < share.end; ++i) {
    const Index outer = i / step, inner = i % step;
    const float* x = args.x + outer * args.size * step + inner;
    float* values = args.values + outer * args.k * step + inner;
    std::int32_t* index = args.index + outer * args.k * step + inner;
    for (Index j = 0; j < args.size; ++j) {
      const float now = x[j * step];
      Index place = smaller(j, args.k);
      while (place > 0 && Op::better(now, values[(place - 1) * step]) &&
             values[(place - 1) * step] == values[(place - 1) * step]) {
        --place;
        if (place + 1 == args.k) continue;
        values[(place + 1) * step] = values[place * step];
        index[(place + 1) * step] = index[place * step];
      }
      if (place == args.k) continue;
      values[place * step] = now;
      index[place * step] = static_cast<std::int32_t>(j);
    }
  }
}

}  // namespace

void minmax(const MinmaxArgs& args, const Worker& worker) {
  args.smallest ? reduce<Min>(args.reduce, worker) : reduce<Max>(args.reduce, worker);
}

void argminmax(const ArgminmaxArgs& args, const Worker& worker) {
  args.smallest ? first_best<Min>(args, worker) : first_best<Max>(args, worker);
}

void topk(const TopkArgs& args, const Worker& worker) {
  args.smallest ? best_k<Min>(args, worker) : best_k<Max>(args, worker);
}

}  // namespace EDGE_ISA
}  // namespace edge
