#include "algorithms/svd.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "kernels/symmetric.h"

namespace edge {

namespace {

constexpr Index kOversampling = 8;
// Below this the whole A^T A is cheaper, and exact.
constexpr Index kSmallSide = 64;
// A block of rows that is read twice stays in the second-level cache of a core.
constexpr Index kBlockBytes = 256 << 10;
// Rows that Z is summed over at a time: fixed, so that results do not depend on threads.
constexpr Index kSumRows = 64;
// Beyond these the products of products leave the range of float32: a copy is scaled by a power of
// two.
constexpr float kSmallest = 0x1p-40F, kLargest = 0x1p40F;
// What float32 products leave of a singular value, relative to the largest.
constexpr double kNegligible = 1e-8;

enum Block : std::size_t { kRight = kRoomFloats + 1, kNext, kLeft, kCopy, kUnits };

std::uint64_t count_of(Index size) { return static_cast<std::uint64_t>(size); }

struct Matrix {
  const float* data;
  Index m, n;
  double squares;   // ||A||^2 of the data, scaled or not
  double scale;     // what the data has to be multiplied with to be A
  bool transposed;  // the data is A^T
};

struct Norms {
  double squares;
  float peak;
};

[[noreturn]] void refuse_number(const char* name, const float* x, Index rows, Index columns) {
  for (Index i = 0; i < rows * columns; ++i) {
    if (std::isfinite(x[i])) continue;
    throw std::invalid_argument(
        std::string(name) + "[" + std::to_string(i / columns) + ", " + std::to_string(i % columns) +
        "] is " + (std::isnan(x[i]) ? "NaN" : "infinite") + "; every element has to be finite");
  }
  throw std::logic_error("a sum of squares is not finite, but every element is");
}

Norms norms_of(Workspace& ws, const float* x, Index size) {
  const Index chunks = square_chunks(size);
  double* sums = ws.block<double>(kUnits, count_of(chunks + (chunks + 1) / 2));
  float* peaks = reinterpret_cast<float*>(sums + chunks);
  const SquareSumsArgs args{x, sums, peaks, size};
  ws.run([&](const Worker& worker) { ws.kernels().square_sums(args, worker); });
  Norms norms{0, 0};
  for (Index i = 0; i < chunks; ++i) {
    norms.squares += sums[i];
    norms.peak = std::max(norms.peak, peaks[i]);
  }
  return norms;
}

// A as it is, or a copy that is scaled, transposed or both.
Matrix matrix_of(Workspace& ws, const SvdArgs& args, bool transpose) {
  const Norms norms = norms_of(ws, args.a, args.m * args.n);
  if (!std::isfinite(norms.squares)) refuse_number("a", args.a, args.m, args.n);
  const bool wild = norms.peak > 0 && (norms.peak < kSmallest || norms.peak > kLargest);
  if (!wild && !transpose) return {args.a, args.m, args.n, norms.squares, 1, false};
  const int exponent = wild ? std::ilogb(norms.peak) : 0;
  const double factor = std::ldexp(1.0, -exponent);
  float* copy = ws.block<float>(kCopy, count_of(args.m * args.n));
  for (Index i = 0; i < args.m; ++i) {
    for (Index j = 0; j < args.n; ++j) {
      copy[transpose ? j * args.m + i : i * args.n + j] =
          static_cast<float>(static_cast<double>(args.a[i * args.n + j]) * factor);
    }
  }
  const double squares = norms.squares * factor * factor;
  const double scale = std::ldexp(1.0, exponent);
  if (transpose) return {copy, args.n, args.m, squares, scale, true};
  return {copy, args.m, args.n, squares, scale, false};
}

// y[rows] = A[rows] v
void apply(Workspace& ws, const Matrix& a, const Basis& v, const Basis& y, Index begin, Index end) {
  NarrowArgs args;
  args.a = a.data + begin * a.n;
  args.a_step = args.k = a.n;
  args.b = v.data;
  args.c = y.data + begin * y.width;
  args.m = end - begin;
  args.n = v.width;
  ws.run([&](const Worker& worker) { ws.kernels().narrow(args, worker); });
}

// z (+)= A[rows]^T y[rows], begin a multiple of kSumRows
void apply_transposed(Workspace& ws, const Matrix& a, const Basis& y, const Basis& z, Index begin,
                      Index end) {
  ws.run([&](const Worker& worker) {
    for (Index row = begin; row < end; row += kSumRows) {
      NarrowArgs args;
      args.a = a.data + row * a.n;
      args.a_step = args.m = a.n;
      args.b = y.data + row * y.width;
      args.c = z.data;
      args.n = y.width;
      args.k = std::min(kSumRows, end - row);
      args.trans_a = true;
      args.add = row > 0;
      ws.kernels().narrow(args, worker);
    }
  });
}

// y = A v and z = A^T y, reading A once.
void apply_both(Workspace& ws, const Matrix& a, const Basis& v, const Basis& y, const Basis& z) {
  const Index bytes = kSumRows * a.n * static_cast<Index>(sizeof(float));
  const Index rows = kSumRows * std::max<Index>(1, kBlockBytes * ws.threads() / bytes);
  for (Index begin = 0; begin < a.m; begin += rows) {
    const Index end = std::min(a.m, begin + rows);
    apply(ws, a, v, y, begin, end);
    apply_transposed(ws, a, y, z, begin, end);
  }
}

// v: uniform in [-0.5, 0.5), a function of the seed and the place alone.
void draw(Workspace& ws, const Basis& v, std::uint64_t seed) {
  const float none = 0;
  RandomArgs args;
  args.seed = args.step = &none;
  args.stream = seed;
  args.y = v.data;
  args.size = v.rows * v.width;
  ws.run([&](const Worker& worker) { ws.kernels().random(args, worker); });
  for (Index i = 0; i < args.size; ++i) v.data[i] -= 0.5F;
}

void eigen(Workspace& ws, const SmallRoom& room, Index n, Index wanted) {
  bool converged = true;
  ws.kernels().eigen({room.g, room.values, room.vectors, room.work, &converged, n, wanted},
                     Worker{});
  if (!converged) throw std::runtime_error("eigenvalues did not converge: a product overflowed");
}

double sum_of(const double* values, Index count) {
  double sum = 0;
  for (Index i = 0; i < count; ++i) sum += std::max(0.0, values[i]);
  return sum;
}

// The smallest rank whose squares are the share args.energy of all, or the most there may be.
Index rank_of(const SvdArgs& args, const Matrix& a, const double* values, Index width) {
  const Index most = std::min(args.rank, width);
  double sum = 0;
  for (Index rank = 1; args.energy > 0 && rank < most; ++rank) {
    sum += std::max(0.0, values[rank - 1]);
    if (sum >= args.energy * a.squares) return rank;
  }
  return most;
}

// V, room for A^T Y, and Y = A V whose Gram matrix is diagonalised in SmallRoom.
struct Bases {
  Basis v, next, y;
  Index rank, passes;
};

Bases bases_of(Workspace& ws, const Matrix& a, Index width) {
  return {{ws.block<float>(kRight, count_of(a.n * width)), a.n, width},
          {ws.block<float>(kNext, count_of(a.n * width)), a.n, width},
          {ws.block<float>(kLeft, count_of(a.m * width)), a.m, width},
          0,
          0};
}

void diagonalise(Workspace& ws, const SvdArgs& args, const Matrix& a, const SmallRoom& room,
                 Bases& it) {
  const Index width = it.y.width;
  gram(ws, it.y, room);
  eigen(ws, room, width, std::min(args.rank, width));
  it.rank = rank_of(args, a, room.values, width);
}

// The next iteration would lower the error by less than args.tolerance of it: each gains about
// (s_p / s_r)^4 of what the one before did. Below 1e-6 float32 cannot tell.
bool settled(const SvdArgs& args, const Matrix& a, const SmallRoom& room, const Bases& it) {
  const double now = sum_of(room.values, it.rank), gain = now - sum_of(room.before, it.rank);
  const double last = room.values[it.rank - 1];
  const double ratio = last > 0 ? std::max(0.0, room.values[it.y.width - 1]) / last : 0;
  return gain * ratio * ratio <= 2 * args.tolerance * std::max(a.squares - now, 1e-6 * a.squares);
}

// Subspace iteration from it.v, orthonormal where warm.
void iterate(Workspace& ws, const SvdArgs& args, const Matrix& a, const SmallRoom& room,
             Bases& it) {
  const Index width = it.v.width, certain = args.warm != nullptr ? 1 : 2;
  for (Index i = 0; i < certain; ++i) {
    apply_both(ws, a, it.v, it.y, it.next);
    it.passes += 2;
    if (i == certain - 1) {
      gram(ws, it.y, room);
      eigen(ws, room, width, 0);
    }
    std::swap(it.v, it.next);
    std::copy(room.values, room.values + width, room.before);
    orthonormalise(ws, it.v, it.next, room);
  }
  for (Index i = certain;; ++i) {
    apply(ws, a, it.v, it.y, 0, a.m);
    it.passes += 1;
    diagonalise(ws, args, a, room, it);
    if (i >= args.iterations || settled(args, a, room, it)) return;
    std::copy(room.values, room.values + width, room.before);
    apply_transposed(ws, a, it.y, it.next, 0, a.m);
    it.passes += 1;
    std::swap(it.v, it.next);
    orthonormalise(ws, it.v, it.next, room);
  }
}

// The first columns of v from an earlier V^T; the others stay as drawn.
void start_warm(Workspace& ws, const SvdArgs& args, const SmallRoom& room, Bases& it) {
  if (!std::isfinite(norms_of(ws, args.warm, args.warm_rank * it.v.rows).squares))
    refuse_number("warm", args.warm, args.warm_rank, it.v.rows);
  for (Index j = 0; j < std::min(args.warm_rank, it.v.width); ++j)
    for (Index i = 0; i < it.v.rows; ++i)
      it.v.data[i * it.v.width + j] = args.warm[j * it.v.rows + i];
  orthonormalise(ws, it.v, it.next, room);
}

Index first_width(const SvdArgs& args) {
  if (args.energy <= 0) return narrow_width(args.rank + kOversampling);
  return narrow_width(std::min(args.rank, std::max(args.warm_rank, kOversampling)) + kOversampling);
}

// By eigenvectors of the whole A^T A.
Bases decompose_small(Workspace& ws, const SvdArgs& args, const Matrix& a, SmallRoom& room) {
  const Index whole = narrow_width(a.n);
  room = small_room(ws, whole);
  const GramArgs product{a.data, a.n, room.g, room.scratch, a.m, a.n};
  ws.run([&](const Worker& worker) { ws.kernels().gram(product, worker); });
  eigen(ws, room, whole, narrow_width(args.rank));
  const Index rank = rank_of(args, a, room.values, a.n), width = narrow_width(rank);
  Bases it = bases_of(ws, a, width);
  for (Index i = 0; i < a.n; ++i)
    for (Index j = 0; j < width; ++j)
      it.v.data[i * width + j] = static_cast<float>(room.vectors[j * whole + i]);
  orthonormalise(ws, it.v, it.next, room);
  apply(ws, a, it.v, it.y, 0, a.m);
  it.passes = 2;
  diagonalise(ws, args, a, room, it);
  return it;
}

// Where the energy takes more columns than Y can tell of: twice as many, or as many as it takes if
// none of what follows is smaller than the last that has converged.
Index wider(const SvdArgs& args, const Matrix& a, const SmallRoom& room, Index width) {
  const Index known = width - kOversampling;
  const double missing = args.energy * a.squares - sum_of(room.values, known);
  const double last = room.values[known - 1];
  const double more = last > 0 ? std::max(0.0, missing / last) : 0;
  const Index least = known + static_cast<Index>(std::min(more, static_cast<double>(args.rank)));
  return std::min(std::max(2 * width, narrow_width(least + kOversampling)),
                  narrow_width(args.rank + kOversampling));
}

// Wider and wider where an energy is asked for, until kOversampling columns of Y are spare.
Bases decompose(Workspace& ws, const SvdArgs& args, Matrix& a, SmallRoom& room) {
  const Index least = std::min(a.m, a.n), widest = narrow_width(args.rank + kOversampling);
  Index passes = 0;
  for (Index width = first_width(args); least > kSmallSide && 2 * width <= least;
       width = wider(args, a, room, width)) {
    room = small_room(ws, width);
    Bases it = bases_of(ws, a, width);
    draw(ws, it.v, args.seed);
    if (args.warm != nullptr) start_warm(ws, args, room, it);
    iterate(ws, args, a, room, it);
    it.passes += passes;
    if (width == widest || it.rank + kOversampling <= width) return it;
    passes = it.passes;
  }
  if (a.m < a.n) a = matrix_of(ws, args, true);
  Bases it = decompose_small(ws, args, a, room);
  it.passes += passes;
  return it;
}

// Columns of y W / s, or of y W, as an orthonormal basis: W are eigenvectors, one a row.
Basis factor_of(Workspace& ws, const SmallRoom& room, const Bases& it, const Basis& y, float* to,
                bool divide) {
  const Index width = it.y.width, out = narrow_width(it.rank);
  for (Index j = 0; j < width; ++j) {
    for (Index i = 0; i < out; ++i) {
      const double s = i < it.rank ? room.values[i] : 0;
      const double vector = i < it.rank ? room.vectors[i * width + j] : 0;
      room.x[j * out + i] = static_cast<float>(!divide ? vector : s > 0 ? vector / s : 0);
    }
  }
  Basis factor{to, y.rows, out};
  multiply(ws, y, room.x, factor);
  return factor;
}

// The largest element of every column of u becomes positive; the first of several.
void fix_signs(const Basis& u, const Basis& v, Index rank) {
  for (Index j = 0; j < rank; ++j) {
    float extreme = 0;
    for (Index i = 0; i < u.rows; ++i) {
      const float value = u.data[i * u.width + j];
      if (std::fabs(value) > std::fabs(extreme)) extreme = value;
    }
    if (extreme >= 0) continue;
    for (Index i = 0; i < u.rows; ++i) u.data[i * u.width + j] *= -1;
    for (Index i = 0; i < v.rows; ++i) v.data[i * v.width + j] *= -1;
  }
}

// Columns of v whose index is below `count` and that are zero are drawn.
bool redraw(Workspace& ws, const Basis& v, const Basis& spare, Index count, std::uint64_t seed) {
  bool any = false;
  for (Index j = 0; j < count; ++j) {
    bool zero = true;
    for (Index i = 0; zero && i < v.rows; ++i) zero = v.data[i * v.width + j] == 0;
    if (!zero) continue;
    if (!any) draw(ws, spare, seed);
    any = true;
    for (Index i = 0; i < v.rows; ++i) v.data[i * v.width + j] = spare.data[i * v.width + j];
  }
  return any;
}

// y = A v 2^e with e such that squares of y, and their inverses, stay in the range of float32.
void apply_in_range(Workspace& ws, const Matrix& a, const Basis& v, const Basis& y,
                    const SmallRoom& room) {
  for (int round = 0; round < 2; ++round) {
    apply(ws, a, v, y, 0, a.m);
    gram(ws, y, room);
    double most = 0;
    for (Index j = 0; j < y.width; ++j) {
      const double square = room.g[j * y.width + j];
      if (!(square <= most)) most = square;
    }
    if (!std::isfinite(most) && !std::isfinite(norms_of(ws, a.data, a.m * a.n).squares))
      refuse_number("a", a.data, a.m, a.n);
    const double reach = std::sqrt(most);
    if (most == 0 ||
        (reach >= static_cast<double>(kSmallest) && reach <= static_cast<double>(kLargest)))
      return;
    const int exponent =
        std::isfinite(most) ? std::max(-100, std::min(100, -std::ilogb(reach))) : -100;
    for (Index i = 0; i < v.rows * v.width; ++i) v.data[i] = std::ldexp(v.data[i], exponent);
  }
}

}  // namespace

Svd truncated_svd(Workspace& ws, const SvdArgs& args) {
  Matrix a = matrix_of(ws, args, false);
  SmallRoom room{};
  Bases it = decompose(ws, args, a, room);
  for (Index i = 0; i < it.rank; ++i) room.values[i] = std::sqrt(std::max(0.0, room.values[i]));
  for (Index i = it.rank - 1; i >= 0; --i)
    if (room.values[i] <= kNegligible * room.values[0]) room.values[i] = 0;
  const Index out = narrow_width(it.rank);
  Basis u = factor_of(ws, room, it, it.y, ws.block<float>(kUnits, count_of(a.m * out)), true);
  Basis v = factor_of(ws, room, it, it.v, it.next.data, false);
  orthonormalise(ws, u, it.y, room);
  orthonormalise(ws, v, it.v, room);
  complete(u, it.rank);
  complete(v, it.rank);
  double captured = 0;
  for (Index i = 0; i < it.rank; ++i) captured += room.values[i] * room.values[i];
  const double missing = a.squares > 0 ? std::max(0.0, 1 - captured / a.squares) : 0;
  if (a.transposed) std::swap(u, v);
  fix_signs(u, v, it.rank);
  return {u.data,  v.data,  room.values, a.scale,           u.width,
          v.width, it.rank, it.passes,   std::sqrt(missing)};
}

namespace {

// Column j of q, zero beyond the rank. Only its direction counts; one of numbers that have hardly
// a reciprocal is lifted out of there, by a power of two.
void load_direction(const PowerArgs& args, Index j, const Basis& to) {
  const bool there = j < args.rank;
  float largest = 0;
  for (Index i = 0; there && i < args.n; ++i)
    largest = std::max(largest, std::fabs(args.q[i * args.rank + j]));
  const float lift = largest < 0x1p-100F ? 0x1p100F : 1;
  for (Index i = 0; i < args.n; ++i)
    to.data[i * to.width + j] = there ? args.q[i * args.rank + j] * lift : 0;
}

}  // namespace

PowerFactors power_step(Workspace& ws, const PowerArgs& args) {
  const Matrix a{args.a, args.m, args.n, 0, 1, false};
  const Index width = narrow_width(args.rank);
  if (!std::isfinite(norms_of(ws, args.q, args.n * args.rank).squares))
    refuse_number("q", args.q, args.n, args.rank);
  const SmallRoom room = small_room(ws, width);
  Bases it = bases_of(ws, a, width);
  for (Index j = 0; j < width; ++j) load_direction(args, j, it.v);
  orthonormalise(ws, it.v, it.next, room);
  if (redraw(ws, it.v, it.next, std::min(args.rank, args.n), args.seed))
    orthonormalise(ws, it.v, it.next, room);
  apply_in_range(ws, a, it.v, it.y, room);
  Basis spare{ws.block<float>(kUnits, count_of(a.m * width)), a.m, width};
  orthonormalise(ws, it.y, spare, room);
  apply_transposed(ws, a, it.y, it.next, 0, a.m);
  return {it.y.data, it.next.data, width};
}

}  // namespace edge
