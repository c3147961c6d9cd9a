// Selection at the edges of its memory: operands and outputs that end where an allocation ends, at
// addresses of no alignment, against a sort, on every instruction set with one and three threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "algorithms/select.h"
#include "check.h"
#include "core/cpu.h"
#include "core/workspace.h"

namespace {

using edge::Index;
using edge::SelectKind;

// `size` elements that end with their allocation, at an odd multiple of their size.
template <class T>
class Tight {
 public:
  explicit Tight(Index size) : memory_(new T[static_cast<std::size_t>(size) + 1]), size_(size) {
    std::fill_n(data(), size, T{});
  }
  T* data() { return memory_.get() + 1; }
  T& operator[](Index i) { return data()[i]; }
  Index size() const { return size_; }

 private:
  std::unique_ptr<T[]> memory_;
  Index size_;
};

float number(Index i, unsigned seed, unsigned values) {
  unsigned h = static_cast<unsigned>(i) * 2654435761U + seed * 40503U;
  h = (h ^ h >> 15) * 2246822519U;
  h ^= h >> 13;
  const float sign = (h & 1U) != 0 ? -1.0F : 1.0F;
  return sign * static_cast<float>((h >> 8) % values) / 256.0F;
}

// Ascending places of the k largest, of equals the lower.
std::vector<Index> expected(Tight<float>& v, Index k) {
  std::vector<Index> order(static_cast<std::size_t>(v.size()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return std::fabs(v[a]) > std::fabs(v[b]); });
  order.resize(static_cast<std::size_t>(k));
  std::sort(order.begin(), order.end());
  return order;
}

void plain_case(edge::Workspace& workspace, Index n, Index k, unsigned values) {
  Tight<float> x(n), found(k);
  Tight<std::int32_t> index(k);
  for (Index i = 0; i < n; ++i) x[i] = number(i, 1, values);
  edge::SelectProblem problem;
  problem.tensors = {{x.data(), nullptr, nullptr, n / 3},
                     {x.data() + n / 3, nullptr, nullptr, n - n / 3}};
  edge::Selection selection(workspace, problem);
  selection.top_k(k);
  CHECK(selection.emit(index.data(), found.data()));
  const std::vector<Index> places = expected(x, k);
  bool same = true;
  for (Index i = 0; i < k; ++i) {
    const Index place = places[static_cast<std::size_t>(i)];
    same = same && index[i] == place && found[i] == x[place];
  }
  CHECK(same);
}

void halves_case(edge::Workspace& workspace, Index n, Index k) {
  Tight<std::uint16_t> x(n), found(k);
  Tight<std::int32_t> index(k);
  Tight<float> wide(n);
  for (Index i = 0; i < n; ++i) {
    wide[i] = number(i, 2, 200);  // eight bits: bfloat16 holds them
    std::uint32_t bits;
    std::memcpy(&bits, &wide[i], sizeof bits);
    x[i] = static_cast<std::uint16_t>(bits >> 16);
  }
  edge::SelectProblem problem;
  problem.kind = SelectKind::bits16;
  problem.tensors = {{x.data(), nullptr, nullptr, n}};
  edge::Selection selection(workspace, problem);
  selection.top_k(k);
  CHECK(selection.emit(index.data(), found.data()));
  const std::vector<Index> places = expected(wide, k);
  bool same = true;
  for (Index i = 0; i < k; ++i)
    same = same && index[i] == places[static_cast<std::size_t>(i)] && found[i] == x[index[i]];
  CHECK(same);
}

void accumulating_case(edge::Workspace& workspace, SelectKind kind, Index n, Index k) {
  Tight<float> g(n), u(n), v(n), sum(n), found(k);
  Tight<std::int32_t> index(k);
  for (Index i = 0; i < n; ++i) {
    g[i] = number(i, 3, 5000), u[i] = number(i, 4, 5000), v[i] = number(i, 5, 5000);
    // Halves and sums of these are exact, so the order of operations does not matter here.
    sum[i] = v[i] + g[i];
    if (kind == SelectKind::dgc) sum[i] = v[i] + (0.5F * u[i] + g[i]);
    if (kind == SelectKind::nesterov) sum[i] = v[i] + (0.5F * (u[i] + g[i]) + g[i]);
  }
  edge::SelectProblem problem;
  problem.kind = kind;
  problem.factor = 0.5F;
  problem.tensors = {{g.data(), v.data(), kind == SelectKind::residual ? nullptr : u.data(), n}};
  edge::Selection selection(workspace, problem);
  selection.top_k(k);
  CHECK(selection.emit(index.data(), found.data()));
  const std::vector<Index> places = expected(sum, k);
  bool same = true;
  for (Index i = 0; i < k; ++i) {
    const Index place = places[static_cast<std::size_t>(i)];
    same = same && index[i] == place && found[i] == sum[place] && v[place] == 0.0F;
    if (kind != SelectKind::residual) same = same && u[place] == 0.0F;
    sum[place] = 0.0F;
  }
  for (Index i = 0; i < n; ++i) same = same && v[i] == sum[i];
  CHECK(same);
}

void threshold_case(edge::Workspace& workspace, Index n) {
  Tight<float> x(n);
  for (Index i = 0; i < n; ++i) x[i] = number(i, 6, 1000);
  edge::SelectProblem problem;
  problem.tensors = {{x.data(), nullptr, nullptr, n}};
  edge::Selection selection(workspace, problem);
  selection.above(0x3F800000U);
  Tight<float> found(selection.count());
  Tight<std::int32_t> index(selection.count());
  CHECK(selection.emit(index.data(), found.data()));
  Index at = 0;
  bool same = true;
  for (Index i = 0; i < n; ++i) {
    if (std::fabs(x[i]) < 1.0F) continue;
    same = same && at < selection.count() && index[at] == i && found[at] == x[i];
    ++at;
  }
  CHECK(same && at == selection.count());
}

void sampled_case(edge::Workspace& workspace, Index n, unsigned values) {
  Tight<float> x(n);
  for (Index i = 0; i < n; ++i) x[i] = number(i, 7, values);
  edge::SelectProblem problem;
  problem.tensors = {{x.data(), nullptr, nullptr, n}};
  edge::Selection selection(workspace, problem);
  const Index k = std::max<Index>(1, n / 20);
  selection.sampled(k, {11, std::max<Index>(1, n / 4), k / 2, 2 * k, 3});
  CHECK(selection.count() >= k / 2 && selection.count() <= 2 * k);
  Tight<float> found(selection.count());
  Tight<std::int32_t> index(selection.count());
  CHECK(selection.emit(index.data(), found.data()));
  for (Index i = 1; i < selection.count(); ++i) CHECK(index[i - 1] < index[i]);
}

void every_case(const char* isa, int threads) {
  edge::Workspace workspace(threads, isa);
  for (const Index n : {1, 2, 7, 15, 16, 17, 63, 64, 65, 130, 1000, 16384, 16385, 20011}) {
    for (const Index k : {Index{1}, n / 100, n / 9, n / 3, n - 1, n}) {
      if (k < 1) continue;
      for (const unsigned values : {1U, 2U, 9U, 30000U}) plain_case(workspace, n, k, values);
      halves_case(workspace, n, k);
      for (const SelectKind kind : {SelectKind::residual, SelectKind::dgc, SelectKind::nesterov})
        accumulating_case(workspace, kind, n, k);
    }
    threshold_case(workspace, n);
    for (const unsigned values : {1U, 30000U}) sampled_case(workspace, n, values);
  }
}

}  // namespace

int main() {
  for (const edge::Kernels* kernels : edge::available_kernels()) {
    for (const int threads : {1, 3}) every_case(kernels->isa, threads);
  }
  return check::finish();
}
