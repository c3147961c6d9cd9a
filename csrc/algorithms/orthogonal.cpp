#include "algorithms/orthogonal.h"

#include <cmath>
#include <utility>

#include "kernels/symmetric.h"

namespace edge {

namespace {

// max |G - I|, but for dependent columns, which are zero in G.
double departure(const SmallRoom& room, Index width) {
  double most = 0;
  for (Index i = 0; i < width; ++i) {
    const double* row = room.g + i * width;
    if (row[i] == 0) continue;
    for (Index j = i; j < width; ++j) {
      const double off = std::fabs(row[j] - (i == j ? 1 : 0));
      if (!(off <= most)) most = off;
    }
  }
  return most;
}

double overlap(const Basis& y, Index i, Index j) {
  double sum = 0;
  for (Index row = 0; row < y.rows; ++row) {
    const float* at = y.data + row * y.width;
    sum += static_cast<double>(at[i]) * static_cast<double>(at[j]);
  }
  return sum;
}

// The row of `y` that its columns reach least: a unit vector there is the furthest from them.
Index emptiest_row(const Basis& y) {
  Index best = 0;
  double least = INFINITY;
  for (Index row = 0; row < y.rows; ++row) {
    double sum = 0;
    for (Index j = 0; j < y.width; ++j) {
      const double value = static_cast<double>(y.data[row * y.width + j]);
      sum += value * value;
    }
    if (sum < least) best = row, least = sum;
  }
  return best;
}

void add_column(const Basis& y, Index from, Index to, double factor) {
  for (Index row = 0; row < y.rows; ++row) {
    float* at = y.data + row * y.width;
    at[to] =
        static_cast<float>(static_cast<double>(at[to]) + factor * static_cast<double>(at[from]));
  }
}

}  // namespace

Index small_room_doubles(Index width) { return 2 * width * width + 2 * width + eigen_work(width); }

SmallRoom small_room(Workspace& workspace, Index width) {
  const Index square = width * width;
  auto count = [](Index size) { return static_cast<std::uint64_t>(size); };
  double* doubles = workspace.block<double>(
      kRoomDoubles, count(small_room_doubles(width) + gram_scratch(width) * workspace.threads()));
  double* work = doubles + 2 * square + 2 * width;
  return {doubles,
          doubles + square,
          doubles + 2 * square,
          work - width,
          work,
          workspace.block<float>(kRoomFloats, count(square)),
          work + eigen_work(width)};
}

void gram(Workspace& workspace, const Basis& y, const SmallRoom& room) {
  const GramArgs args{y.data, y.width, room.g, room.scratch, y.rows, y.width};
  workspace.run([&](const Worker& worker) { workspace.kernels().gram(args, worker); });
}

void multiply(Workspace& workspace, const Basis& y, const float* x, const Basis& to) {
  NarrowArgs args;
  args.a = y.data;
  args.a_step = args.k = y.width;
  args.n = to.width;
  args.b = x;
  args.c = to.data;
  args.m = y.rows;
  workspace.run([&](const Worker& worker) { workspace.kernels().narrow(args, worker); });
}

void orthonormalise(Workspace& workspace, Basis& y, Basis& spare, const SmallRoom& room) {
  for (int round = 0; round < kRounds; ++round) {
    gram(workspace, y, room);
    if (departure(room, y.width) <= kOrthogonal) return;
    workspace.kernels().cholesky({room.g, room.vectors, room.x, y.width}, Worker{});
    spare.rows = y.rows;
    spare.width = y.width;
    multiply(workspace, y, room.x, spare);
    std::swap(y, spare);
  }
  throw std::runtime_error("columns did not become orthonormal: a product overflowed");
}

void complete(const Basis& y, Index count) {
  for (Index column = 0; column < count; ++column) {
    if (overlap(y, column, column) > 0) continue;
    y.data[emptiest_row(y) * y.width + column] = 1;
    for (int round = 0; round < 3; ++round) {  // as Gram-Schmidt needs where little is left
      for (Index j = 0; j < y.width; ++j)
        if (j != column) add_column(y, j, column, -overlap(y, j, column));
      add_column(y, column, column, 1 / std::sqrt(overlap(y, column, column)) - 1);
    }
  }
}

}  // namespace edge
