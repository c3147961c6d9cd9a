// Truncated SVD on a device, run by the emulation: spectra that are known, odd shapes, laws.
#include <algorithm>
#include <cmath>
#include <limits>

#include "emulated.h"
#include "kernels/low_rank.cuh"

namespace {

using namespace emulated;
namespace low_rank = edge::cuda::low_rank;

using Dense = std::vector<double>;  // row-major

// (rows, columns) with orthonormal columns: random ones, twice through Gram and Schmidt.
Dense orthonormal(u64 rows, u64 columns, u32 seed) {
  Numbers numbers(seed);
  Dense q(rows * columns);
  for (double& x : q) x = static_cast<double>(numbers.value());
  for (u64 j = 0; j < columns; ++j) {
    for (u64 i = 0; i < 2 * j; ++i) {
      double dot = 0.0;
      for (u64 k = 0; k < rows; ++k) dot += q[k * columns + j] * q[k * columns + i % j];
      for (u64 k = 0; k < rows; ++k) q[k * columns + j] -= dot * q[k * columns + i % j];
    }
    double norm = 0.0;
    for (u64 k = 0; k < rows; ++k) norm += q[k * columns + j] * q[k * columns + j];
    for (u64 k = 0; k < rows; ++k) q[k * columns + j] /= std::sqrt(norm);
  }
  return q;
}

std::vector<float> with_spectrum(u64 m, u64 n, const std::vector<double>& s) {
  const Dense u = orthonormal(m, s.size(), 1);
  const Dense v = orthonormal(n, s.size(), 2);
  std::vector<float> a(m * n);
  for (u64 i = 0; i < m; ++i) {
    for (u64 j = 0; j < n; ++j) {
      double sum = 0.0;
      for (u64 k = 0; k < s.size(); ++k) sum += u[i * s.size() + k] * s[k] * v[j * s.size() + k];
      a[i * n + j] = static_cast<float>(sum);
    }
  }
  return a;
}

struct Found {
  Found(u64 m, u64 n, u64 rank) : u(m * rank, NAN), s(rank, NAN), vt(rank * n, NAN) {}
  low_rank::Result result() { return {u.data(), s.data(), vt.data(), &error, &used, &first_bad}; }
  std::vector<float> u, s, vt;
  float error = NAN;
  std::int32_t used = -7, first_bad = -7;
};

low_rank::Settings settings_of(u64 rank) { return {rank, 5, nullptr, 0, 8, 0.12, 1.0}; }

Found decompose(EmulatedLauncher& launcher, const std::vector<float>& a, u64 m, u64 n,
                const low_rank::Settings& settings) {
  Found found(m, n, settings.rank);
  low_rank::Matrix it{};
  low_rank::Buffers buffers{};
  it.m = m, it.n = n, it.width = low_rank::width_of(m, n, settings.rank);
  Workspace workspace(low_rank::layout(it, launcher.processors(), nullptr, &buffers));
  low_rank::truncated_svd(launcher, a.data(), m, n, settings, found.result(), workspace.get());
  return found;
}

double relative_error(const std::vector<float>& a, u64 m, u64 n, u64 rank, const Found& found) {
  double missed = 0.0;
  double all = 0.0;
  for (u64 i = 0; i < m; ++i) {
    for (u64 j = 0; j < n; ++j) {
      double sum = static_cast<double>(a[i * n + j]);
      all += sum * sum;
      for (u64 k = 0; k < rank; ++k) {
        sum -= static_cast<double>(found.u[i * rank + k]) * static_cast<double>(found.s[k]) *
               static_cast<double>(found.vt[k * n + j]);
      }
      missed += sum * sum;
    }
  }
  return std::sqrt(missed / all);
}

// max |X^T X - I| for (size, rank) columns at x[i * row + j * column].
double not_orthonormal(const std::vector<float>& x, u64 size, u64 rank, u64 row, u64 column) {
  double worst = 0.0;
  for (u64 a = 0; a < rank; ++a) {
    for (u64 b = 0; b < rank; ++b) {
      double dot = a == b ? -1.0 : 0.0;
      for (u64 i = 0; i < size; ++i) {
        dot += static_cast<double>(x[i * row + a * column]) *
               static_cast<double>(x[i * row + b * column]);
      }
      worst = std::max(worst, std::fabs(dot));
    }
  }
  return worst;
}

void factors_are_as_good_as_the_best(u64 m, u64 n, u64 rank, const std::vector<double>& s,
                                     double size) {
  std::vector<float> a = with_spectrum(m, n, s);
  for (float& x : a) x = static_cast<float>(static_cast<double>(x) * size);
  double tail = 0.0;
  double all = 0.0;
  for (u64 k = 0; k < s.size(); ++k) {
    tail += k >= rank ? s[k] * s[k] : 0.0;
    all += s[k] * s[k];
  }
  const double best = std::sqrt(tail / all);
  for_every_order([&](EmulatedLauncher& launcher) {
    const Found found = decompose(launcher, a, m, n, settings_of(rank));
    std::vector<float> scaled = a;
    Found at_one = found;
    for (float& x : scaled) x = static_cast<float>(static_cast<double>(x) / size);
    for (float& x : at_one.s) x = static_cast<float>(static_cast<double>(x) / size);
    const double error = relative_error(scaled, m, n, rank, at_one);
    CHECK(error <= 1.02 * best + 2e-6);
    CHECK(std::fabs(static_cast<double>(found.error) - error) <= 1e-3 * error + 6e-4);
    CHECK(not_orthonormal(found.u, m, rank, rank, 1) <= 2e-6);
    CHECK(not_orthonormal(found.vt, n, rank, 1, n) <= 2e-6);
    CHECK(std::is_sorted(found.s.rbegin(), found.s.rend()));
    CHECK(std::fabs(static_cast<double>(at_one.s[0]) - s[0]) <= 1e-4 * s[0]);
    CHECK(found.first_bad == -1);
    for (u64 k = 0; k < rank; ++k) {
      float largest = 0.0F;
      for (u64 i = 0; i < m; ++i) {
        if (std::fabs(found.u[i * rank + k]) > std::fabs(largest)) largest = found.u[i * rank + k];
      }
      CHECK(largest > 0.0F);
    }
  });
}

std::vector<double> spectrum(u64 count, double (*value)(double)) {
  std::vector<double> s;
  for (u64 i = 1; i <= count; ++i) s.push_back(value(static_cast<double>(i)));
  return s;
}

void spectra_and_shapes() {
  const auto slow = spectrum(60, [](double i) { return 1.0 / std::sqrt(i); });
  const auto fast = spectrum(60, [](double i) { return std::pow(0.8, i); });
  factors_are_as_good_as_the_best(150, 90, 8, slow, 1.0);
  factors_are_as_good_as_the_best(70, 131, 8, fast, 1.0);
  factors_are_as_good_as_the_best(130, 100, 40, fast, 1e30);
  factors_are_as_good_as_the_best(66, 65, 60, slow, 1e-30);
  factors_are_as_good_as_the_best(64, 17, 17, spectrum(17, [](double i) { return 1.0 / i; }), 1.0);
  factors_are_as_good_as_the_best(9, 30, 3, spectrum(9, [](double) { return 1.0; }), 1.0);
  factors_are_as_good_as_the_best(1, 50, 1, {3.0}, 1.0);
  factors_are_as_good_as_the_best(50, 1, 1, {3.0}, 1.0);
  factors_are_as_good_as_the_best(1, 1, 1, {2.0}, 1.0);
}

void missing_rank_gives_zeros() {
  EmulatedLauncher launcher(2, Order::shuffled);
  const std::vector<float> a = with_spectrum(40, 60, {5.0, 2.0});
  const Found found = decompose(launcher, a, 40, 60, settings_of(6));
  CHECK(relative_error(a, 40, 60, 6, found) < 1e-5);
  CHECK(std::all_of(found.s.begin() + 2, found.s.end(), [](float s) { return s < 1e-5F; }));
  const Found zero = decompose(launcher, std::vector<float>(2400), 40, 60, settings_of(6));
  CHECK(zero.s == std::vector<float>(6) && zero.u == std::vector<float>(240) &&
        zero.vt == std::vector<float>(360));
  CHECK(zero.error == 0.0F);
}

void energy_names_the_smallest_rank() {
  EmulatedLauncher launcher(2, Order::forward);
  const std::vector<float> a =
      with_spectrum(50, 40, {4.0, 2.0, 1.0, 0.5});  // squares 16, 4, 1, 1 / 4 of 21.25
  for (const auto& [energy, used] :
       {std::pair<double, int>{0.5, 1}, {0.93, 2}, {0.98, 3}, {0.999, 4}}) {
    low_rank::Settings settings = settings_of(5);
    settings.energy = energy;
    CHECK(decompose(launcher, a, 50, 40, settings).used == used);
  }
}

void a_warm_start_needs_no_iteration() {
  EmulatedLauncher launcher(3, Order::reverse);
  const auto s = spectrum(60, [](double i) { return 1.0 / std::sqrt(i); });
  const std::vector<float> a = with_spectrum(100, 80, s);
  const Found first = decompose(launcher, a, 100, 80, settings_of(8));
  low_rank::Settings settings = settings_of(8);
  settings.iterations = 0;
  settings.warm = first.vt.data(), settings.warm_rank = 8;
  const Found again = decompose(launcher, a, 100, 80, settings);
  CHECK(static_cast<double>(again.error) <= 1.0001 * static_cast<double>(first.error));
}

void what_is_not_finite_is_found() {
  EmulatedLauncher launcher(3, Order::shuffled);
  std::vector<float> a(600, 1.0F);
  a[411] = std::numeric_limits<float>::infinity();
  a[500] = std::numeric_limits<float>::quiet_NaN();
  CHECK(decompose(launcher, a, 20, 30, settings_of(2)).first_bad == 411);
}

// p q^T is A projected on the span of A q, whatever the size of A.
void a_power_step_projects(double size) {
  constexpr u64 kRows = 90, kColumns = 70, kRank = 7;
  std::vector<float> a =
      with_spectrum(kRows, kColumns, spectrum(40, [](double i) { return 1.0 / i; }));
  for (float& x : a) x = static_cast<float>(static_cast<double>(x) * size);
  for_every_order([&](EmulatedLauncher& launcher) {
    Numbers numbers(9);
    std::vector<float> q(kColumns * kRank), p(kRows * kRank, NAN), next(kColumns * kRank, NAN);
    for (float& x : q) x = numbers.value();
    std::int32_t first_bad = -7;
    low_rank::Matrix it{};
    it.m = kRows, it.n = kColumns, it.width = kRank;
    Workspace workspace(low_rank::layout(it, launcher.processors(), nullptr, nullptr));
    low_rank::power_step(launcher, a.data(), kRows, kColumns, kRank, q.data(), p.data(),
                         next.data(), &first_bad, workspace.get());
    CHECK(first_bad == -1);
    CHECK(not_orthonormal(p, kRows, kRank, kRank, 1) <= 2e-6);
    double worst_q = 0.0;
    double outside = 0.0;
    for (u64 j = 0; j < kColumns; ++j) {
      for (u64 k = 0; k < kRank; ++k) {
        double sum = -static_cast<double>(next[j * kRank + k]);
        for (u64 i = 0; i < kRows; ++i) {
          sum += static_cast<double>(a[i * kColumns + j]) * static_cast<double>(p[i * kRank + k]);
        }
        worst_q = std::max(worst_q, std::fabs(sum) / size);
      }
    }
    for (u64 k = 0; k < kRank; ++k) {
      std::vector<double> y(kRows);
      double norm = 0.0;
      for (u64 i = 0; i < kRows; ++i) {
        for (u64 j = 0; j < kColumns; ++j) {
          y[i] += static_cast<double>(a[i * kColumns + j]) / size *
                  static_cast<double>(q[j * kRank + k]);
        }
        norm += y[i] * y[i];
      }
      std::vector<double> rest = y;
      for (u64 l = 0; l < kRank; ++l) {
        double dot = 0.0;
        for (u64 i = 0; i < kRows; ++i) dot += y[i] * static_cast<double>(p[i * kRank + l]);
        for (u64 i = 0; i < kRows; ++i) rest[i] -= dot * static_cast<double>(p[i * kRank + l]);
      }
      for (const double x : rest) outside = std::max(outside, x * x / norm);
    }
    CHECK(worst_q <= 1e-6);
    CHECK(outside <= 1e-11);
  });
}

void the_workspace_is_what_the_contract_says() {
  for (const u64 processors : {1U, 14U, 132U}) {
    for (const u64 m : {1U, 100U, 4096U}) {
      for (const u64 n : {7U, 1024U, 4096U}) {
        low_rank::Matrix it{};
        low_rank::Buffers buffers{};
        const u64 p = low_rank::width_of(m, n, 1);
        const u64 most = std::max(m, n);
        it.m = m, it.n = n, it.width = p;
        const u64 bytes = low_rank::layout(it, processors, nullptr, &buffers);
        CHECK(it.splits <= 2 * processors / edge::cuda::ceil_div(most, 64) + 1);
        CHECK(bytes <=
              4 * p * (m + n) + 4 * p * most * it.splits + 280 * p * p + 32 * processors + 9 * 256);
      }
    }
  }
}

}  // namespace

int main() {
  spectra_and_shapes();
  missing_rank_gives_zeros();
  energy_names_the_smallest_rank();
  a_warm_start_needs_no_iteration();
  what_is_not_finite_is_found();
  a_power_step_projects(1.0);
  a_power_step_projects(1e-25);
  the_workspace_is_what_the_contract_says();
  return check::finish();
}
