// What decompositions are made of, at the edges of their memory, on every instruction set, against
// plain loops; then whole decompositions of shapes with a short side.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "algorithms/svd.h"
#include "check.h"
#include "kernels/symmetric.h"

namespace {

using edge::Index;
using edge::Kernels;

template <class T>
using Numbers = std::vector<T>;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// Numbers in [-1, 1) at an address that is not aligned, ending with the allocation.
class Floats {
 public:
  explicit Floats(Index size, unsigned seed = 0) : memory_(at(size) + 1) {
    for (float& value : memory_) {
      seed = seed * 1664525U + 1013904223U;
      value = static_cast<float>(seed >> 8) / 8388608.0F - 1.0F;
    }
  }
  float* data() { return memory_.data() + 1; }
  double operator[](Index i) const { return static_cast<double>(memory_[at(i) + 1]); }

 private:
  Numbers<float> memory_;
};

void narrow_case(const Kernels& kernels, Index m, Index n, Index k, bool trans_a, bool add) {
  Floats a(m * k, 1), b(k * n, 2), c(m * n, 3), before(m * n, 3);
  const Index workers = 1 + (m + k) % 3;
  for (Index w = 0; w < workers; ++w)
    kernels.narrow({a.data(), trans_a ? m : k, b.data(), c.data(), m, n, k, trans_a, add},
                   {w, workers, nullptr});
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      double sum = add ? before[i * n + j] : 0;
      for (Index l = 0; l < k; ++l) sum += a[trans_a ? l * m + i : i * k + l] * b[l * n + j];
      CHECK(std::fabs(c[i * n + j] - sum) <= 1e-6 * static_cast<double>(k + 4));
    }
  }
}

void narrow_products_handle_every_tail(const Kernels& kernels) {
  for (const Index m : {1, 2, 5, 7, 12, 13, 25, 64, 97})
    for (const Index n : {16, 32, 48, 80})
      for (const bool trans_a : {false, true})
        narrow_case(kernels, m, n, 1 + m % 9, trans_a, m % 2 == 0);
  narrow_case(kernels, 5, 16, 2 * edge::kNarrowDepth + 3, false, false);
  narrow_case(kernels, 5, 48, edge::kNarrowDepth + 1, false, true);
}

void gram_case(const Kernels& kernels, Index rows, Index n) {
  Floats y(rows * n, 4);
  const Index width = edge::narrow_width(n), workers = 1 + rows % 3;
  Numbers<double> g(at(width * width), std::nan("")), scratch(at(edge::gram_scratch(n) * workers));
  for (Index w = 0; w < workers; ++w)
    kernels.gram({y.data(), n, g.data(), scratch.data(), rows, n}, {w, workers, nullptr});
  for (Index i = 0; i < width; ++i) {
    for (Index j = i; j < width; ++j) {
      double sum = 0;
      for (Index row = 0; row < rows && j < n; ++row) sum += y[row * n + i] * y[row * n + j];
      CHECK(std::fabs(g[at(i * width + j)] - sum) <= 1e-14 * static_cast<double>(rows + 4));
    }
  }
}

void gram_matrices_handle_every_tail(const Kernels& kernels) {
  for (const Index rows : {1, 31, 32, 33, 70})
    for (const Index n : {1, 3, 8, 15, 16, 17, 33}) gram_case(kernels, rows, n);
}

void squares_are_summed_by_chunks(const Kernels& kernels) {
  for (const Index size : {1, 5, 31, 32, 33, 8191, 8192, 8193, 20000}) {
    Floats x(size, 6);
    x.data()[size / 2] = -3.0F;
    Numbers<double> sums(at(edge::square_chunks(size)));
    Numbers<float> peaks(sums.size());
    for (Index w = 0; w < 2; ++w)
      kernels.square_sums({x.data(), sums.data(), peaks.data(), size}, {w, 2, nullptr});
    double sum = 0, all = 0;
    float peak = 0;
    for (Index i = 0; i < size; ++i) sum += x[i] * x[i];
    for (std::size_t i = 0; i < sums.size(); ++i) {
      all += sums[i];
      peak = std::fmax(peak, peaks[i]);
    }
    CHECK(std::fabs(sum - all) <= 1e-12 * sum);
    CHECK(peak == 3.0F);
  }
}

// A positive definite matrix, its upper triangle; the lower one is never read.
Numbers<double> definite(Index n) {
  Floats y(2 * n * n, 7);
  Numbers<double> g(at(n * n), std::nan(""));
  for (Index i = 0; i < n; ++i) {
    for (Index j = i; j < n; ++j) {
      g[at(i * n + j)] = 0;
      for (Index row = 0; row < 2 * n; ++row) g[at(i * n + j)] += y[row * n + i] * y[row * n + j];
    }
  }
  return g;
}

double upper(const Numbers<double>& g, Index n, Index i, Index j) {
  return g[at(i < j ? i * n + j : j * n + i)];
}

void cholesky_gives_the_inverse_root(const Kernels& kernels) {
  for (const Index n : {1, 2, 7, 16, 33}) {
    const Numbers<double> g = definite(n);
    Numbers<double> factor = g, work(at(n * n));
    Numbers<float> x(at(n * n));
    kernels.cholesky({factor.data(), work.data(), x.data(), n}, {});
    for (Index i = 0; i < n; ++i) {  // X^T G X = I
      for (Index j = 0; j < n; ++j) {
        double sum = 0;
        for (Index k = 0; k < n; ++k)
          for (Index l = 0; l < n; ++l)
            sum += static_cast<double>(x[at(k * n + i)]) * upper(g, n, k, l) *
                   static_cast<double>(x[at(l * n + j)]);
        CHECK(std::fabs(sum - (i == j ? 1 : 0)) <= 2e-5);
      }
    }
  }
}

void a_dependent_column_is_zero(const Kernels& kernels) {
  Numbers<double> g = {1, 2, 0, 2, 4, 0, 0, 0, 3}, work(9);
  Numbers<float> x(9, 5.0F);
  kernels.cholesky({g.data(), work.data(), x.data(), 3}, {});
  const Numbers<float> wanted = {1, 0, 0, 0, 0, 0, 0, 0, 1 / std::sqrt(3.0F)};
  for (Index i = 0; i < 9; ++i) CHECK(std::fabs(x[at(i)] - wanted[at(i)]) < 1e-6F);
}

void eigenvectors_diagonalise(const Kernels& kernels) {
  for (const Index n : {1, 2, 3, 16, 17, 40}) {
    const Numbers<double> g = definite(n);
    Numbers<double> copy = g, values(at(n)), vectors(at(n * n)), work(at(edge::eigen_work(n)));
    bool converged = false;
    kernels.eigen({copy.data(), values.data(), vectors.data(), work.data(), &converged, n, n}, {});
    CHECK(converged);
    for (Index v = 0; v < n; ++v) {
      CHECK(v == 0 || values[at(v - 1)] >= values[at(v)]);
      for (Index i = 0; i < n; ++i) {
        double product = 0;
        for (Index j = 0; j < n; ++j) product += upper(g, n, i, j) * vectors[at(v * n + j)];
        CHECK(std::fabs(product - values[at(v)] * vectors[at(v * n + i)]) <= 1e-12 * values[0]);
      }
      for (Index other = 0; other <= v; ++other) {
        double product = 0;
        for (Index j = 0; j < n; ++j)
          product += vectors[at(v * n + j)] * vectors[at(other * n + j)];
        CHECK(std::fabs(product - (v == other ? 1 : 0)) <= 1e-12);
      }
    }
  }
}

void a_nan_does_not_converge_forever(const Kernels& kernels) {
  Numbers<double> g(at(16), std::nan("")), values(4), vectors(16), work(at(edge::eigen_work(4)));
  bool converged = true;
  kernels.eigen({g.data(), values.data(), vectors.data(), work.data(), &converged, 4, 4}, {});
  CHECK(!converged || std::isnan(values[0]));
}

// Of full rank: U diag(s) V^T is A again, whatever the shape.
void decompositions_of_full_rank_are_the_matrix(const std::string& isa) {
  edge::Workspace workspace(2, isa);
  for (const Index m : {1, 2, 5, 66}) {
    for (const Index n : {1, 3, 16, 67}) {
      Floats a(m * n, 9);
      edge::SvdArgs args;
      args.a = a.data();
      args.m = m;
      args.n = n;
      args.rank = m < n ? m : n;
      const edge::Svd svd = edge::truncated_svd(workspace, args);
      for (Index i = 0; i < m; ++i) {
        for (Index j = 0; j < n; ++j) {
          double sum = 0;
          for (Index k = 0; k < svd.rank; ++k)
            sum += static_cast<double>(svd.u[i * svd.u_step + k]) * svd.s[k] *
                   static_cast<double>(svd.v[j * svd.v_step + k]);
          CHECK(std::fabs(sum - a[i * n + j]) <= 1e-4);
        }
      }
    }
  }
}

void wide_and_tall_matrices_are_iterated(const std::string& isa) {
  edge::Workspace workspace(3, isa);
  for (const Index m : {67, 130}) {
    const Index n = 197 - m;
    Floats a(m * n, 10), q(n * 3, 11);
    edge::SvdArgs args;
    args.a = a.data();
    args.m = m;
    args.n = n;
    args.rank = 3;
    const edge::Svd svd = edge::truncated_svd(workspace, args);
    CHECK(svd.rank == 3 && svd.passes >= 5);
    CHECK(svd.error > 0.5 && svd.error < 1);
    const edge::PowerFactors step = edge::power_step(workspace, {a.data(), q.data(), m, n, 3, 0});
    double length = 0;
    for (Index i = 0; i < m; ++i) {
      const auto value = static_cast<double>(step.p[i * step.step]);
      length += value * value;
    }
    CHECK(std::fabs(length - 1) <= 1e-5);
    a.data()[m * n - 1] = std::numeric_limits<float>::infinity();
    bool refused = false;
    try {
      edge::truncated_svd(workspace, args);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

}  // namespace

int main() {
  for (const Kernels* kernels : edge::available_kernels()) {
    narrow_products_handle_every_tail(*kernels);
    gram_matrices_handle_every_tail(*kernels);
    squares_are_summed_by_chunks(*kernels);
    cholesky_gives_the_inverse_root(*kernels);
    a_dependent_column_is_zero(*kernels);
    eigenvectors_diagonalise(*kernels);
    a_nan_does_not_converge_forever(*kernels);
    decompositions_of_full_rank_are_the_matrix(kernels->isa);
    wide_and_tall_matrices_are_iterated(kernels->isa);
  }
  return check::finish();
}
