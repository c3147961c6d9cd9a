#include "kernels/symmetric.h"

#include "kernels/doubles.h"

namespace edge {
namespace EDGE_ISA {

namespace {

double magnitude(double x) { return x < 0 ? -x : x; }

// sqrt(x^2 + y^2) without overflow.
double length_of(double x, double y) {
  const double a = magnitude(x), b = magnitude(y);
  const double high = a > b ? a : b, low = a > b ? b : a;
  if (high == 0) return 0;
  return high * __builtin_sqrt(1 + (low / high) * (low / high));
}

// R of G = R^T R into the upper triangle of g; a dependent column gets a zero row and column.
void factorise(double* g, double* diagonal, Index n) {
  for (Index i = 0; i < n; ++i) diagonal[i] = g[i * n + i];
  for (Index k = 0; k < n; ++k) {
    double* row = g + k * n;
    const bool dependent = !(row[k] > kDependent * diagonal[k]);
    const double scale = dependent ? 0 : 1 / __builtin_sqrt(row[k]);
    for (Index j = k; j < n; ++j) row[j] *= scale;
    for (Index i = k + 1; i < n; ++i) add_scaled(-row[i], row + i, g + i * n + i, n - i);
  }
}

// Rows of X from the last up: R X = I. Zero pivots leave zero rows, and columns of zeros above.
void invert(const double* r, double* inverse, float* x, Index n) {
  for (Index i = n - 1; i >= 0; --i) {
    double* row = inverse + i * n;
    const double pivot = r[i * n + i];
    const double scale = pivot > 0 ? 1 / pivot : 0;
    for (Index j = 0; j < n; ++j) row[j] = i == j && pivot > 0 ? 1 : 0;
    for (Index k = i + 1; k < n; ++k)
      add_scaled(-r[i * n + k], inverse + k * n + k, row + k, n - k);
    for (Index j = 0; j < n; ++j) {
      row[j] *= scale;
      x[i * n + j] = static_cast<float>(row[j]);
    }
  }
}

// Reflectors I - beta v v^T that make g tridiagonal; v of step k stays in row k right of the
// diagonal. `d` the diagonal, `e` what is beside it (e[i] between i and i + 1).
void tridiagonalise(double* g, double* d, double* e, double* beta, Index n) {
  for (Index k = 0; k + 2 < n; ++k) {
    double* v = g + k * n + k + 1;
    double* p = e + k + 1;  // not yet in use beyond k
    const Index size = n - k - 1;
    d[k] = g[k * n + k];
    const double norm = __builtin_sqrt(dot(v, v, size));
    const double alpha = v[0] > 0 ? -norm : norm;
    e[k] = alpha;
    beta[k] = 0;
    if (norm == 0) continue;
    beta[k] = 1 / (norm * (norm + magnitude(v[0])));
    v[0] -= alpha;
    for (Index i = 0; i < size; ++i) p[i] = beta[k] * dot(g + (k + 1 + i) * n + k + 1, v, size);
    add_scaled(-0.5 * beta[k] * dot(p, v, size), v, p, size);
    for (Index i = 0; i < size; ++i) {
      double* row = g + (k + 1 + i) * n + k + 1;
      const double vi = v[i], pi = p[i];
      EDGE_INDEPENDENT
      for (Index j = 0; j < size; ++j) row[j] -= vi * p[j] + pi * v[j];
    }
  }
  if (n > 1) {
    d[n - 2] = g[(n - 2) * n + n - 2];
    e[n - 2] = g[(n - 2) * n + n - 1];
  }
  d[n - 1] = g[(n - 1) * n + n - 1];
  e[n - 1] = 0;
}

// Rows i and i + 1 of z turned by the angle of (c, s).
void rotate(double* row, Index n, double c, double s) {
  double* next = row + n;
  EDGE_INDEPENDENT
  for (Index j = 0; j < n; ++j) {
    const double a = row[j], b = next[j];
    next[j] = s * a + c * b;
    row[j] = c * a - s * b;
  }
}

// One implicit QL step on [begin, end] with Wilkinson's shift.
void ql_step(double* d, double* e, double* z, Index begin, Index end, Index n) {
  double g = (d[begin + 1] - d[begin]) / (2 * e[begin]);
  const double r = length_of(g, 1);
  g = d[end] - d[begin] + e[begin] / (g < 0 ? g - r : g + r);
  double s = 1, c = 1, p = 0;
  for (Index i = end - 1; i >= begin; --i) {
    const double f = s * e[i], b = c * e[i];
    const double length = length_of(f, g);
    e[i + 1] = length;
    if (length == 0) {  // the matrix has come apart here
      d[i + 1] -= p;
      e[end] = 0;
      return;
    }
    s = f / length;
    c = g / length;
    g = d[i + 1] - p;
    const double t = (d[i] - g) * s + 2 * c * b;
    p = s * t;
    d[i + 1] = g + p;
    g = c * t - b;
    if (z != nullptr) rotate(z + i * n, n, c, s);
  }
  d[begin] -= p;
  e[begin] = g;
  e[end] = 0;
}

// Eigenvalues of the tridiagonal matrix in d; the rows of z, the identity before, are its vectors.
bool diagonalise(double* d, double* e, double* z, Index n) {
  constexpr double kEpsilon = 2.220446049250313e-16;
  double scale = 0;
  for (Index i = 0; i < n; ++i) {
    const double here = magnitude(d[i]) + magnitude(e[i]);
    scale = here > scale ? here : scale;
  }
  Index steps = 0;
  for (Index begin = 0; begin < n; ++begin) {
    for (;;) {
      Index end = begin;
      while (end < n - 1) {
        const double beside = magnitude(d[end]) + magnitude(d[end + 1]);
        const double small = beside > kEpsilon * scale ? beside : kEpsilon * scale;
        if (magnitude(e[end]) <= kEpsilon * small) break;
        ++end;
      }
      if (end == begin) break;
      if (++steps > 40 * n) return false;
      ql_step(d, e, z, begin, end, n);
    }
  }
  return true;
}

// The vector of the tridiagonal matrix as one of the whole: reflectors in reverse.
void reflect_back(const double* g, const double* beta, double* vector, Index n) {
  for (Index k = n - 3; k >= 0; --k) {
    const double* v = g + k * n + k + 1;
    add_scaled(-beta[k] * dot(v, vector + k + 1, n - k - 1), v, vector + k + 1, n - k - 1);
  }
}

}  // namespace

void cholesky(const CholeskyArgs& args, const Worker& worker) {
  if (worker.index != 0) return;
  factorise(args.g, args.work, args.n);
  invert(args.g, args.work, args.x, args.n);
}

void eigen(const EigenArgs& args, const Worker& worker) {
  if (worker.index != 0) return;
  const Index n = args.n;
  double* z = args.wanted > 0 ? args.work : nullptr;
  double* d = args.work + n * n;
  double *e = d + n, *beta = e + n;
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < i; ++j) args.g[i * n + j] = args.g[j * n + i];
  tridiagonalise(args.g, d, e, beta, n);
  for (Index i = 0; z != nullptr && i < n * n; ++i) z[i] = i % (n + 1) == 0 ? 1 : 0;
  *args.converged = diagonalise(d, e, z, n);
  for (Index rank = 0; rank < n; ++rank) {  // selection: the largest that is left
    Index best = 0;
    for (Index i = 1; i < n; ++i) best = d[i] > d[best] ? i : best;
    args.values[rank] = d[best];
    d[best] = -__builtin_inf();
    if (rank >= args.wanted) continue;
    double* vector = args.vectors + rank * n;
    for (Index j = 0; j < n; ++j) vector[j] = z[best * n + j];
    reflect_back(args.g, beta, vector, n);
  }
}

}  // namespace EDGE_ISA
}  // namespace edge
