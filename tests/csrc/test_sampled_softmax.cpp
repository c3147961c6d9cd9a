// Sampled softmax at the ends of its arrays: every operand in an allocation of exactly its size,
// misaligned where it may be, every instruction set, one worker and three, with the same bits.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "algorithms/sampled_softmax.h"
#include "check.h"
#include "core/cpu.h"

namespace {

using edge::Index;

// `count` elements right at the end of an allocation, at an odd multiple of four bytes.
template <class T>
class Exact {
 public:
  explicit Exact(Index count)
      : memory_(new T[static_cast<std::size_t>(count) + 1]),
        data_(memory_.get() + 1),
        count_(static_cast<std::size_t>(count)) {}
  T* data() { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  std::size_t size() const { return count_; }

 private:
  std::unique_ptr<T[]> memory_;
  T* data_;
  std::size_t count_;
};

struct Shape {
  Index batch, width, count, table;
  float scale;
  Index own;
};

struct Result {
  float loss;
  std::vector<float> d_features, d_rows, rows;
};

Result run(const Shape& shape, const char* isa, int threads, bool update) {
  std::mt19937 random(7);
  const auto unit = [&] { return static_cast<float>(random() % 2001) / 1000.0F - 1.0F; };
  Exact<float> features(shape.batch * shape.width), rows(shape.table * shape.width);
  Exact<float> correction(shape.count), d_features(shape.batch * shape.width);
  Exact<float> d_rows(shape.count * shape.width);
  Exact<std::int32_t> labels(shape.batch), classes(shape.count);
  for (std::size_t i = 0; i < features.size(); ++i) features[i] = unit();
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = unit();
  for (std::size_t i = 0; i < correction.size(); ++i) correction[i] = unit();
  const Index positives = 1 + shape.count / 3;
  for (std::size_t i = 0; i < labels.size(); ++i)
    labels[i] = static_cast<std::int32_t>(random() % static_cast<unsigned>(positives + 1)) - 1;
  for (std::size_t i = 0; i < classes.size(); ++i)
    classes[i] = static_cast<std::int32_t>(shape.table - 1 - static_cast<Index>(i));
  // The last negative hits a positive.
  if (shape.count > positives) classes[classes.size() - 1] = classes[0];
  edge::SampledSoftmaxArgs args;
  Result result;
  args.features = features.data();
  args.rows = rows.data();
  args.classes = classes.data();
  args.labels = labels.data();
  args.correction = correction.data();
  args.loss = &result.loss;
  args.d_features = d_features.data();
  if (!update) args.d_rows = d_rows.data();
  if (update) args.updated = rows.data();
  args.lr = 0.5F;
  args.scale = shape.scale;
  args.batch = shape.batch;
  args.width = shape.width;
  args.count = shape.count;
  args.table = shape.table;
  args.positives = positives;
  args.own = shape.own;
  args.all_labels = shape.batch;
  edge::Workspace workspace(threads, isa);
  // What scratch holds must not matter.
  const edge::SoftmaxLayout layout = edge::softmax_layout(shape.batch, shape.width, shape.count);
  const auto floats =
      static_cast<std::uint64_t>(layout.shared_floats + (threads - 1) * layout.own_floats);
  std::memset(workspace.block<float>(0, floats), 0xFF, static_cast<std::size_t>(floats) * 4);
  edge::sampled_softmax(args, workspace);
  result.d_features.assign(d_features.data(), d_features.data() + d_features.size());
  if (!update) result.d_rows.assign(d_rows.data(), d_rows.data() + d_rows.size());
  result.rows.assign(rows.data(), rows.data() + rows.size());
  return result;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool near(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) <= 1e-5F)) return false;
  return a.size() == b.size();
}

// Widths and batches around vectors and panels, classes around units and blocks, both ways with
// the logits.
constexpr Shape kShapes[] = {
    {1, 1, 1, 1, 0.0F, 0},      {3, 7, 2, 5, 4.0F, 0},       {15, 16, 48, 50, 0.0F, 3},
    {16, 33, 49, 49, 2.0F, 17}, {33, 31, 97, 120, 0.0F, 0},  {32, 64, 1100, 1100, 0.0F, 0},
    {5, 1400, 60, 61, 1.0F, 0}, {600, 5, 480, 490, 3.0F, 9}, {31, 32, 95, 100, 0.0F, 32},
};

void stays_inside_and_agrees(const Shape& shape) {
  Result first;
  for (const edge::Kernels* kernels : edge::available_kernels()) {
    const Result one = run(shape, kernels->isa, 1, false);
    const Result three = run(shape, kernels->isa, 3, false);
    CHECK(std::isfinite(one.loss) && one.loss == three.loss);
    CHECK(same(one.d_features, three.d_features) && same(one.d_rows, three.d_rows));
    const Result updated = run(shape, kernels->isa, 1, true);
    const Result by_three = run(shape, kernels->isa, 3, true);
    CHECK(same(updated.rows, by_three.rows) && same(updated.d_features, one.d_features));
    CHECK(!same(updated.rows, one.rows) || shape.count <= 2);  // one class is certain
    if (first.d_rows.empty()) first = one;
    CHECK(near(first.d_features, one.d_features) && near(first.d_rows, one.d_rows));
  }
}

}  // namespace

int main() {
  for (const Shape& shape : kShapes) stays_inside_and_agrees(shape);
  return check::finish();
}
