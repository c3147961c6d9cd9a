// Sums under the sanitizers: every form at odd sizes and addresses of tensors, threads, hostile
// places; against long double, and against another order to the bit.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "algorithms/fold.h"
#include "check.h"
#include "core/cpu.h"

namespace edge {
namespace {

std::vector<float> drawn(Index n, std::uint32_t seed) {
  std::mt19937 draw(seed);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& value : x) value = static_cast<float>(draw()) / 4.3e9F - 0.5F;
  return x;
}

CodedPiece dense(const std::vector<float>& x, Index begin = 0) {
  CodedPiece piece;
  piece.values = x.data();
  piece.begin = begin;
  piece.count = static_cast<Index>(x.size());
  return piece;
}

std::vector<double> all_sums(const Accumulator& sums) {
  std::vector<double> out;
  for (Index t = 0; t < sums.tensors(); ++t) {
    std::vector<double> part(static_cast<std::size_t>(sums.size(t)));
    sums.sums(t, {part.data(), part.size()});
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

Span<const double> span_of(const std::vector<double>& weights) {
  return {weights.data(), weights.size()};
}

// The tensors' weights change in the middle of chunks, and tensors of no value are among them.
void check_orders(const char* isa, int threads) {
  const std::vector<Index> sizes = {1, 0, 4095, 3, 5000, 0, 7};
  const Index total = 9106;
  Workspace workspace(threads, isa);
  std::vector<std::vector<float>> values;
  for (std::uint32_t seed = 0; seed < 4; ++seed) values.push_back(drawn(total, seed));
  std::vector<double> first;
  for (int order = 0; order < 2; ++order) {
    Accumulator sums(sizes);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t at = order == 0 ? i : values.size() - 1 - i;
      const auto n = static_cast<double>(at);
      const std::vector<double> weights = {1.0 + n, 2.0, 3.0, 3.0, 0.1 * n, 5.0, 1e6 * n};
      const CodedUpdate update(workspace, {dense(values[at])}, total);
      CHECK(update.first_bad() == -1);
      sums.add(workspace, update, span_of(weights));
    }
    const std::vector<double> found = all_sums(sums);
    if (order == 0) first = found;
    CHECK(found == first);
    for (std::size_t place = 0; place < found.size(); ++place) {
      long double exact = 0;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto n = static_cast<double>(i);
        const std::vector<double> weights = {1.0 + n, 3.0, 0.1 * n, 1e6 * n};
        const std::size_t of = place < 1 ? 0 : place < 4099 ? 1 : place < 9099 ? 2 : 3;
        exact += static_cast<long double>(values[i][place] * weights[of]);
      }
      CHECK(std::fabs(static_cast<double>(exact) - found[place]) <=
            1e-15 * std::fabs(found[place]) + 1e-18);
    }
  }
}

void check_places(const char* isa, int threads) {
  const Index total = 100000;
  Workspace workspace(threads, isa);
  std::vector<std::int32_t> places;
  for (std::int32_t place = 3; place < total; place += 1 + (place * 7919) % 23) {
    places.push_back(place);
  }
  const std::vector<float> x = drawn(static_cast<Index>(places.size()), 9);
  CodedPiece piece = dense(x);
  piece.places = places.data();
  std::vector<float> whole(static_cast<std::size_t>(total));
  for (std::size_t i = 0; i < x.size(); ++i) whole[static_cast<std::size_t>(places[i])] = x[i];
  const std::vector<double> weights = {3.0, 0.5, 7.0};
  Accumulator sparse({40000, 1, 59999}), other({40000, 1, 59999});
  sparse.add(workspace, CodedUpdate(workspace, {piece}, total), span_of(weights));
  other.add(workspace, CodedUpdate(workspace, {dense(whole)}, total), span_of(weights));
  CHECK(all_sums(sparse) == all_sums(other));
}

void check_blocks(const char* isa, int threads) {
  Workspace workspace(threads, isa);
  for (const Index block :
       {Index{1}, Index{7}, Index{4095}, Index{4096}, Index{5000}, Index{20000}}) {
    const Index n = 12345;
    std::vector<std::int8_t> q(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<std::int8_t>(i * 37 % 255 - 127);
    std::vector<float> scales = drawn((n + block - 1) / block, 5);
    std::vector<float> whole(q.size());
    for (std::size_t i = 0; i < q.size(); ++i) {
      whole[i] = static_cast<float>(q[i]) * scales[i / static_cast<std::size_t>(block)];
    }
    CodedPiece piece;
    piece.coding = Coding::int8;
    piece.values = q.data();
    piece.scales = scales.data();
    piece.block = block;
    piece.count = n;
    piece.begin = 5;
    const std::vector<double> weights = {2.0, 11.0};
    Accumulator sums({6000, 6350}), other({6000, 6350});
    sums.add(workspace, CodedUpdate(workspace, {piece}, 12350), span_of(weights));
    other.add(workspace, CodedUpdate(workspace, {dense(whole, 5)}, 12350), span_of(weights));
    CHECK(all_sums(sums) == all_sums(other));
  }
}

void check_large() {
  Workspace workspace(1, "auto");
  const std::vector<float> x = {1e15F, -1e15F, 3.0F, 1e-3F};
  const std::vector<double> weights = {1e3};
  Accumulator sums({4});
  sums.add(workspace, CodedUpdate(workspace, {dense(x)}, 4), span_of(weights));
  CHECK(sums.bytes() == 4 * 24);
  const std::vector<double> found = all_sums(sums);
  for (std::size_t i = 0; i < x.size(); ++i) {
    CHECK(std::fabs(found[i] - static_cast<double>(x[i]) * 1e3) <=
          1e-16 * std::fabs(found[i]) + 1e-19);
  }
}

template <class Work>
bool refused(const Work& work) {
  try {
    work();
  } catch (const std::invalid_argument&) {
    return true;
  } catch (const StreamError&) {
    return true;
  }
  return false;
}

void check_refusals() {
  Workspace workspace(1, "auto");
  const std::vector<float> x = {1.0F, 2.0F, 3.0F};
  const std::vector<double> one = {1.0}, two = {1.0, 1.0};
  const std::vector<std::int32_t> bad[] = {{0, 0, 1}, {-1, 0, 1}, {0, 2, 1}, {0, 1, 3}};
  for (const auto& places : bad) {
    CodedPiece piece = dense(x);
    piece.places = places.data();
    CHECK(refused([&] { CodedUpdate(workspace, {piece}, 3); }));
  }
  for (const Index begin : {Index{-1}, Index{1}, std::numeric_limits<Index>::max()}) {
    CHECK(refused([&] { CodedUpdate(workspace, {dense(x, begin)}, 3); }));
  }
  Accumulator sums({3});
  const CodedUpdate update(workspace, {dense(x)}, 3);
  const std::vector<double> infinite = {std::numeric_limits<double>::infinity()}, vast = {0x1p72};
  CHECK(refused([&] { sums.add(workspace, update, span_of(two)); }));
  CHECK(refused([&] { sums.add(workspace, update, span_of(infinite)); }));
  CHECK(refused([&] { sums.add(workspace, update, span_of(vast)); }));
  const std::vector<float> worse = {1.0F, std::numeric_limits<float>::quiet_NaN(), 2.0F};
  const CodedUpdate broken(workspace, {dense(worse)}, 3);
  CHECK(broken.first_bad() == 1);
  CHECK(refused([&] { sums.add(workspace, broken, span_of(one)); }));
  CHECK(sums.terms() == 0);
  CHECK(all_sums(sums) == std::vector<double>(3, 0.0));
  CHECK(refused([&] { Accumulator({-1}); }));
  CHECK(refused([&] { Accumulator({Index{1} << 37, 1}); }));
}

}  // namespace
}  // namespace edge

int main() {
  for (const edge::Kernels* kernels : edge::available_kernels()) {
    for (const int threads : {1, 3}) {
      edge::check_orders(kernels->isa, threads);
      edge::check_places(kernels->isa, threads);
      edge::check_blocks(kernels->isa, threads);
    }
  }
  edge::check_large();
  edge::check_refusals();
  return check::finish();
}
