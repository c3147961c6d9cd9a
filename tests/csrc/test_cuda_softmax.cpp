// Sampled softmax on a device, run by the emulation, against the printed formulas in float64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "emulated.h"
#include "kernels/sampled_softmax.cuh"

namespace {

using namespace emulated;
namespace softmax = edge::cuda::softmax;

struct Case {
  u64 batch, width, count, positives;
  float scale = 0.0F;
  bool own_positives = false;
  bool update = false;
  bool all_classes = false;
  float size = 1.0F;  // of features and rows
};

struct Data {
  std::vector<float> features, rows, correction;
  std::vector<std::int32_t> classes, labels;
};

constexpr u64 kSpare = 3;  // rows that no class names
constexpr float kLr = 0.25F;

Data data_of(const Case& c) {
  Numbers numbers(static_cast<u32>(c.batch * 131 + c.width * 17 + c.count));
  Data d;
  const u64 rows = c.all_classes ? c.count : c.count + kSpare;
  d.features.resize(c.batch * c.width);
  d.rows.resize(rows * c.width);
  for (float& x : d.features) x = c.size * numbers.value();
  for (float& x : d.rows) x = c.size * numbers.value();
  for (u64 j = 0; j < c.count; ++j) {
    d.classes.push_back(static_cast<std::int32_t>(rows - 1 - j));
    d.correction.push_back(j % 5 == 4 ? 0.0F : 2.0F * numbers.value());
  }
  // Accidental hits: the last negatives name the rows of positives.
  for (u64 j = c.positives; j < c.count && j < c.positives + 2; ++j) {
    if (!c.all_classes && c.positives > 0) d.classes[j] = d.classes[(j * 7) % c.positives];
  }
  const u64 labels = c.all_classes ? c.count : c.positives;
  for (u64 b = 0; b < c.batch; ++b) {
    d.labels.push_back(b % 7 == 3 ? -1 : static_cast<std::int32_t>(numbers.bits() % labels));
  }
  return d;
}

struct Answer {
  double loss = 0.0;
  std::vector<double> d_features, d_rows;
};

double norm_of(const float* x, u64 width) {
  double sum = 0.0;
  for (u64 k = 0; k < width; ++k) sum += static_cast<double>(x[k]) * static_cast<double>(x[k]);
  return std::sqrt(sum);
}

// The row of class j, or null where j is left out for every example.
bool left_out(const Case& c, const Data& d, u64 j) {
  if (c.all_classes || j < c.positives) return false;
  const auto end = d.classes.begin() + static_cast<std::ptrdiff_t>(c.positives);
  return std::find(d.classes.begin(), end, d.classes[j]) != end;
}

const float* row_of(const Case& c, const Data& d, u64 j) {
  return d.rows.data() + (c.all_classes ? j : static_cast<u64>(d.classes[j])) * c.width;
}

Answer twin(const Case& c, const Data& d) {
  Answer out;
  out.d_features.assign(c.batch * c.width, 0.0);
  out.d_rows.assign(c.count * c.width, 0.0);
  const double labelled = static_cast<double>(
      std::count_if(d.labels.begin(), d.labels.end(), [](std::int32_t y) { return y >= 0; }));
  const double s = static_cast<double>(c.scale);
  for (u64 b = 0; b < c.batch; ++b) {
    if (d.labels[b] < 0) continue;
    const u64 y = static_cast<u64>(d.labels[b]);
    const float* f = d.features.data() + b * c.width;
    const double length = norm_of(f, c.width);
    std::vector<double> logits(c.count, -std::numeric_limits<double>::infinity()), dots(c.count);
    double peak = -std::numeric_limits<double>::infinity();
    for (u64 j = 0; j < c.count; ++j) {
      const bool other = c.own_positives && j < c.positives && j != y;
      if (left_out(c, d, j) || other) continue;
      for (u64 k = 0; k < c.width; ++k) {
        dots[j] += static_cast<double>(f[k]) * static_cast<double>(row_of(c, d, j)[k]);
      }
      const double cosine =
          s == 0.0 ? dots[j] : s * dots[j] / length / norm_of(row_of(c, d, j), c.width);
      const bool corrected = !c.all_classes && j >= c.positives;
      logits[j] = cosine + (corrected ? static_cast<double>(d.correction[j]) : 0.0);
      peak = std::max(peak, logits[j]);
    }
    double sum = 0.0;
    for (const double o : logits) sum += std::exp(o - peak);
    out.loss += (peak + std::log(sum) - logits[y]) / labelled;
    for (u64 j = 0; j < c.count; ++j) {
      if (std::isinf(logits[j])) continue;
      const double g = (std::exp(logits[j] - peak) / sum - (j == y ? 1.0 : 0.0)) / labelled;
      const float* w = row_of(c, d, j);
      const double norm = norm_of(w, c.width);
      for (u64 k = 0; k < c.width; ++k) {
        const double fk = static_cast<double>(f[k]);
        const double wk = static_cast<double>(w[k]);
        const double by_f =
            s == 0.0 ? wk : s * (wk / norm - dots[j] / norm / length * fk / length) / length;
        const double by_w =
            s == 0.0 ? fk : s * (fk / length - dots[j] / norm / length * wk / norm) / norm;
        out.d_features[b * c.width + k] += g * by_f;
        out.d_rows[j * c.width + k] += g * by_w;
      }
    }
  }
  return out;
}

bool close(const std::vector<float>& got, const std::vector<double>& wanted) {
  double largest = 0.0;
  for (const double x : wanted) largest = std::max(largest, std::fabs(x));
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (!(std::fabs(static_cast<double>(got[i]) - wanted[i]) <= 1e-5 * largest + 1e-9))
      return false;
  }
  return true;
}

softmax::Problem problem_of(const Case& c, Data& d) {
  softmax::Problem it{};
  it.features = d.features.data(), it.rows = d.rows.data(), it.labels = d.labels.data();
  it.batch = c.batch, it.width = c.width, it.count = c.count,
  it.row_count = d.rows.size() / c.width;
  it.scale = c.scale, it.own_positives = c.own_positives;
  it.positives = c.all_classes ? c.count : c.positives;
  if (!c.all_classes) it.classes = d.classes.data(), it.correction = d.correction.data();
  return it;
}

void matches(const Case& c) {
  for_every_order([&](EmulatedLauncher& launcher) {
    Data d = data_of(c);
    const std::vector<float> rows_before = d.rows;
    const Answer wanted = twin(c, d);
    std::vector<float> d_features(c.batch * c.width, NAN), d_rows(c.count * c.width, NAN);
    float loss = NAN;
    softmax::Problem it = problem_of(c, d);
    it.loss = &loss, it.d_features = d_features.data();
    if (c.update) {
      it.updated = d.rows.data(), it.lr = kLr;
    } else {
      it.d_rows = d_rows.data();
    }
    Workspace workspace(softmax::layout(it, launcher.processors(), nullptr));
    softmax::run(launcher, it, workspace.get());
    CHECK(std::fabs(static_cast<double>(loss) - wanted.loss) <=
          2e-6 * (1.0 + std::fabs(wanted.loss)));
    CHECK(close(d_features, wanted.d_features));
    if (!c.update) {
      CHECK(close(d_rows, wanted.d_rows));
      CHECK(d.rows == rows_before);
      return;
    }
    std::vector<double> moved(rows_before.begin(), rows_before.end());
    for (u64 j = 0; j < c.count; ++j) {
      const u64 row = c.all_classes ? j : static_cast<u64>(d.classes[j]);
      for (u64 k = 0; k < c.width; ++k) {
        moved[row * c.width + k] -= static_cast<double>(kLr) * wanted.d_rows[j * c.width + k];
      }
    }
    CHECK(close(d.rows, moved));
  });
}

void every_shape_and_form_matches() {
  for (const u64 batch : {1U, 32U, 65U}) {
    for (const u64 count : {1U, 5U, 64U, 131U}) {
      const u64 positives = count < 4 ? count : count / 2;
      matches({batch, 17, count, positives});
      matches({batch, 64, count, positives, 8.0F});
      matches({batch, 1, count, count});
    }
  }
  matches({40, 70, 200, 30, 0.0F, true});
  matches({40, 70, 200, 30, 12.0F, true, true});
  matches({70, 33, 130, 20, 0.0F, false, true});
  matches({130, 20, 300, 0, 0.0F, false, false, true});
  matches({130, 20, 300, 0, 5.0F, false, true, true});
}

void logits_of_ten_thousand_do_not_overflow() {
  matches({9, 40, 100, 10, 0.0F, false, false, false, 60.0F});
}

void one_class_has_no_loss_and_no_gradient() {
  Case c{5, 8, 1, 1};
  Data d = data_of(c);
  std::vector<float> d_features(40, NAN), d_rows(8, NAN);
  float loss = NAN;
  softmax::Problem it = problem_of(c, d);
  it.loss = &loss, it.d_features = d_features.data(), it.d_rows = d_rows.data();
  EmulatedLauncher launcher(3, Order::shuffled);
  Workspace workspace(softmax::layout(it, launcher.processors(), nullptr));
  softmax::run(launcher, it, workspace.get());
  CHECK(loss == 0.0F);
  CHECK(d_features == std::vector<float>(40));
  CHECK(d_rows == std::vector<float>(8));
}

void without_labels_everything_is_zero_and_bad_classes_are_nan() {
  Case c{6, 9, 10, 4};
  for (const bool bad : {false, true}) {
    Data d = data_of(c);
    if (bad) d.classes[7] = -5;
    if (!bad) std::fill(d.labels.begin(), d.labels.end(), -1);
    std::vector<float> d_features(54, 7.0F), d_rows(90, 7.0F);
    float loss = 7.0F;
    softmax::Problem it = problem_of(c, d);
    it.loss = &loss, it.d_features = d_features.data(), it.d_rows = d_rows.data();
    EmulatedLauncher launcher(2, Order::forward);
    Workspace workspace(softmax::layout(it, launcher.processors(), nullptr));
    softmax::run(launcher, it, workspace.get());
    CHECK(bad ? std::isnan(loss) : loss == 0.0F);
    CHECK(bad || (d_features == std::vector<float>(54) && d_rows == std::vector<float>(90)));
  }
}

// No term of S B: logits are never in memory. 256 bytes a part for alignment.
void the_workspace_is_what_the_contract_says() {
  for (const u64 processors : {1U, 14U, 132U}) {
    for (const u64 batch : {1U, 64U, 65U, 4096U}) {
      for (const u64 count : {1U, 1000U, 1000000U}) {
        softmax::Problem it{};
        float rows = 0.0F;
        it.batch = batch, it.width = 512, it.count = count;
        const u64 blocks = 2 * processors;
        const u64 bytes = softmax::layout(it, processors, nullptr);
        CHECK(it.splits == 1 || it.splits * edge::cuda::ceil_div(batch, 64) <= blocks);
        const u64 floats =
            2 * count + batch * (3 + 2 * it.splits) + (it.splits > 1 ? it.splits * batch * 512 : 0);
        CHECK(bytes <= 4 * floats + 10 * 256);
        it.updated = &rows;
        CHECK(softmax::layout(it, processors, nullptr) <=
              4 * (floats + blocks * 64 * 512) + 10 * 256);
      }
    }
  }
}

}  // namespace

int main() {
  every_shape_and_form_matches();
  logits_of_ten_thousand_do_not_overflow();
  one_class_has_no_loss_and_no_gradient();
  without_labels_everything_is_zero_and_bad_classes_are_nan();
  the_workspace_is_what_the_contract_says();
  return check::finish();
}
