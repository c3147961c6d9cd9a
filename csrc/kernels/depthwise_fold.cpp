#include "kernels/depthwise_fold.h"

#include "kernels/depthwise_plan.h"
#include "kernels/lanes.h"

namespace edge {
namespace EDGE_ISA {

namespace {

constexpr int kTaps = 3;  // along both axes

// Numbers 0 .. N - 1 as template arguments.
template <int... I>
struct Numbers {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  using type = Numbers<I...>;
};

// Vectors of rows of WIDTH columns, a whole number of rows in each.
template <class LANES, int WIDTH>
struct Rows {
  using Lanes = LANES;
  using Floats = typename Lanes::Floats;
  static constexpr int kCount = static_cast<int>(Lanes::count);
  using All = typename Count<kCount>::type;

  template <int... I>
  EDGE_INLINE Floats left(Floats v, Numbers<I...>) {
    return __builtin_shufflevector(v, Floats{}, (I % WIDTH == 0 ? kCount : I - 1)...);
  }
  template <int... I>
  EDGE_INLINE Floats right(Floats v, Numbers<I...>) {
    return __builtin_shufflevector(v, Floats{}, (I % WIDTH == WIDTH - 1 ? kCount : I + 1)...);
  }
  // What lies a row above or below each lane.
  template <int... I>
  EDGE_INLINE Floats above(Floats before, Floats v, Numbers<I...>) {
    return __builtin_shufflevector(before, v, (I + kCount - WIDTH)...);
  }
  template <int... I>
  EDGE_INLINE Floats below(Floats v, Floats behind, Numbers<I...>) {
    return __builtin_shufflevector(v, behind, (I + WIDTH)...);
  }
};

// A vector and its neighbours in the row.
template <class R>
struct Triple {
  typename R::Floats tap[kTaps];
};

// A plane's vectors with the same columns, from top to bottom. FIRST, LAST: they begin, end their
// rows.
template <class R, bool FIRST, bool LAST>
EDGE_INLINE Triple<R> triple_at(const float* at) {
  using Floats = typename R::Floats;
  using All = typename R::All;
  const Floats mid = get<Floats>(at);
  return {{FIRST ? R::left(mid, All{}) : get<Floats>(at - 1), mid,
           LAST ? R::right(mid, All{}) : get<Floats>(at + 1)}};
}

template <class R>
EDGE_INLINE Triple<R> above(const Triple<R>& before, const Triple<R>& here) {
  using All = typename R::All;
  Triple<R> t;
  EDGE_UNROLL
  for (int v = 0; v < kTaps; ++v) t.tap[v] = R::above(before.tap[v], here.tap[v], All{});
  return t;
}
template <class R>
EDGE_INLINE Triple<R> below(const Triple<R>& here, const Triple<R>& behind) {
  using All = typename R::All;
  Triple<R> t;
  EDGE_UNROLL
  for (int v = 0; v < kTaps; ++v) t.tap[v] = R::below(here.tap[v], behind.tap[v], All{});
  return t;
}

// f(i, rows above, here and below) for every vector of a strip, `step` floats apart.
template <class R, bool FIRST, bool LAST, class F>
EDGE_INLINE void walk(const float* from, Index vectors, Index step, F f) {
  Triple<R> before{}, here = triple_at<R, FIRST, LAST>(from);
  for (Index i = 0; i + 1 < vectors; ++i) {
    const Triple<R> behind = triple_at<R, FIRST, LAST>(from + (i + 1) * step);
    f(i, above(before, here), here, below(here, behind));
    before = here;
    here = behind;
  }
  f(vectors - 1, above(before, here), here, below(here, Triple<R>{}));
}

template <class R>
struct Kernel {
  typename R::Floats w[kTaps * kTaps], bias, floor;
};

template <class R, bool FIRST, bool LAST>
void correlate_strip(const Kernel<R>& kernel, const float* from, Index vectors, Index step,
                     float* to) {
  using Floats = typename R::Floats;
  const Kernel<R> k = kernel;
  const auto row = [&](int u, const Triple<R>& t) __attribute__((always_inline)) {
    return k.w[u * kTaps] * t.tap[0] + k.w[u * kTaps + 1] * t.tap[1] +
           k.w[u * kTaps + 2] * t.tap[2];
  };
  walk<R, FIRST, LAST>(from, vectors, step,
                       [&](Index i, const Triple<R>& up, const Triple<R>& here,
                           const Triple<R>& down) __attribute__((always_inline)) {
                         const Floats sum = (k.bias + row(0, up)) + (row(1, here) + row(2, down));
                         put(to + i * step, sum < k.floor ? k.floor : sum);
                       });
}

template <class R>
struct Sums {
  typename R::Floats tap[kTaps * kTaps];
};

template <class R, bool FIRST, bool LAST>
void add_strip(const float* x, const float* d_y, Index vectors, Index step, Sums<R>& sums) {
  using Floats = typename R::Floats;
  Sums<R> s = sums;
  walk<R, FIRST, LAST>(x, vectors, step,
                       [&](Index i, const Triple<R>& up, const Triple<R>& here,
                           const Triple<R>& down) __attribute__((always_inline)) {
                         const Floats d = get<Floats>(d_y + i * step);
                         EDGE_UNROLL
                         for (int v = 0; v < kTaps; ++v) {
                           s.tap[v] += d * up.tap[v];
                           s.tap[kTaps + v] += d * here.tap[v];
                           s.tap[2 * kTaps + v] += d * down.tap[v];
                         }
                       });
  sums = s;
}

template <bool B>
struct Known {
  static constexpr bool value = B;
};
using Yes = Known<true>;
using No = Known<false>;

// f(first, last) with what is known of a strip as constants.
template <class F>
EDGE_INLINE void of_ends(bool first, bool last, F f) {
  if (first && last) return f(Yes{}, Yes{});
  if (first) return f(Yes{}, No{});
  if (last) return f(No{}, Yes{});
  f(No{}, No{});
}

// Planes of one channel lie too far apart for a processor to foresee them, so their lines are asked
// for a few planes ahead; this many floats, or one plane.
constexpr Index kAhead = 2048;
EDGE_INLINE void fetch_plane(const float* plane, Index floats) {
  for (Index at = 0; at < floats; at += 16) __builtin_prefetch(plane + at);
}

// f(column, first, last, vectors, step) for every strip of a plane.
template <class R, class F>
EDGE_INLINE void each_strip(Index height, Index width, F f) {
  const Index count = R::Lanes::count;
  if (width <= count) return f(0, true, true, height * width / count, count);
  for (Index column = 0; column < width; column += count)
    f(column, column == 0, column + count == width, height, width);
}

struct Correlation {
  Index planes, groups, height, width;
  const float *source, *w, *bias;  // bias may be null
  Index w_step;                    // from a tap to the next
  float* out;
  bool relu;
};

template <class R>
void correlate(const Correlation& c, const Worker& worker) {
  using Floats = typename R::Floats;
  const Share share = share_of(c.planes, worker);
  for (Index plane = share.begin; plane < share.end; ++plane) {
    const Index group = plane % c.groups;
    Kernel<R> kernel;
    EDGE_UNROLL
    for (int t = 0; t < kTaps * kTaps; ++t)
      kernel.w[t] = c.w[group * kTaps * kTaps + t * c.w_step] - Floats{};
    kernel.bias = (c.bias == nullptr ? 0.0F : c.bias[group]) - Floats{};
    kernel.floor = (c.relu ? 0.0F : -__builtin_inff()) - Floats{};
    const float* from = c.source + plane * c.height * c.width;
    float* to = c.out + plane * c.height * c.width;
    each_strip<R>(c.height, c.width,
                  [&](Index column, bool first, bool last, Index vectors, Index step) {
                    of_ends(first, last, [&](auto f, auto l) {
                      correlate_strip<R, decltype(f)::value, decltype(l)::value>(
                          kernel, from + column, vectors, step, to + column);
                    });
                  });
  }
}

template <class R>
void grad_w(const ConvArgs& a, const Worker& worker) {
  const Share share = share_of(a.groups, worker);
  const Index plane = a.height * a.width, ahead = larger(1, kAhead / plane);
  for (Index group = share.begin; group < share.end; ++group) {
    Sums<R> sums{};
    for (Index image = 0; image < a.images; ++image) {
      const Index at = (image * a.groups + group) * plane;
      const Index next = (group - share.begin) * a.images + image + ahead;
      const Index to_come = (next % a.images * a.groups + share.begin + next / a.images) * plane;
      if (next < (share.end - share.begin) * a.images) {
        fetch_plane(a.x + to_come, plane);
        fetch_plane(a.w + to_come, plane);
      }
      each_strip<R>(a.height, a.width,
                    [&](Index column, bool first, bool last, Index vectors, Index step) {
                      of_ends(first, last, [&](auto f, auto l) {
                        add_strip<R, decltype(f)::value, decltype(l)::value>(
                            a.x + at + column, a.w + at + column, vectors, step, sums);
                      });
                    });
    }
    for (int t = 0; t < kTaps * kTaps; ++t) {
      float sum = 0.0F;
      for (Index j = 0; j < R::Lanes::count; ++j) sum += sums.tap[t][j];
      a.out[group * kTaps * kTaps + t] = sum;
    }
  }
}

bool keeps_size(const depthwise::Axis& a) {
  return a.taps == kTaps && a.dilation == 1 && a.step == 1 && a.gap == 1 && a.pad == 1 &&
         a.source == a.outputs;
}

// f(rows) for the widest vectors that the planes of this problem are made of; false for none.
template <class F>
bool with_rows(const depthwise::Problem& p, F f) {
  if (!keeps_size(p.v) || !keeps_size(p.h)) return false;
  const Index width = p.h.source, plane = p.v.source * width;
#if EDGE_VECTOR_FLOATS >= 16
  if (width % 16 == 0) return f(Rows<Lanes16, 16>{}), true;
  if (width == 8 && plane % 16 == 0) return f(Rows<Lanes16, 8>{}), true;
  if (width == 4 && plane % 16 == 0) return f(Rows<Lanes16, 4>{}), true;
#endif
#if EDGE_VECTOR_FLOATS >= 8
  if (width % 8 == 0) return f(Rows<Lanes8, 8>{}), true;
  if (width == 4 && plane % 8 == 0) return f(Rows<Lanes8, 4>{}), true;
#endif
  if (width % 4 == 0) return f(Rows<Lanes4, 4>{}), true;
  static_cast<void>(plane);
  return false;
}

}  // namespace

bool folded_conv(const ConvArgs& a, const Worker& worker) {
  return with_rows(depthwise::forward_problem(a), [&](auto rows) {
    correlate<decltype(rows)>(
        {a.images * a.groups, a.groups, a.height, a.width, a.x, a.w, a.bias, 1, a.out, a.relu},
        worker);
  });
}

bool folded_grad_x(const ConvArgs& a, const Worker& worker) {
  return with_rows(depthwise::backward_problem(a), [&](auto rows) {
    correlate<decltype(rows)>({a.images * a.groups, a.groups, a.height, a.width, a.x,
                               a.w + kTaps * kTaps - 1, nullptr, -1, a.out, false},
                              worker);
  });
}

bool folded_grad_w(const ConvArgs& a, const Worker& worker) {
  return with_rows(depthwise::forward_problem(a),
                   [&](auto rows) { grad_w<decltype(rows)>(a, worker); });
}

}  // namespace EDGE_ISA
}  // namespace edge
