// Selection on a device, run by the emulation, against a sort.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "emulated.h"
#include "kernels/selection.cuh"

namespace {

using namespace emulated;
namespace selection = edge::cuda::selection;

// Indices of the k largest magnitudes, ties to the lower index, ascending.
template <class Bits>
std::vector<u32> sorted_twin(const Bits* x, u64 n, u32 k) {
  std::vector<u32> order(n);
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) {
    return selection::magnitude(x[a]) > selection::magnitude(x[b]);
  });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

template <class Bits>
u32 first_nan_of(const Bits* x, u64 n, selection::Infinity infinity) {
  for (u64 i = 0; i < n; ++i) {
    if (selection::magnitude(x[i]) > infinity.magnitude) return static_cast<u32>(i);
  }
  return selection::kNone;
}

template <class Bits>
struct Output {
  explicit Output(u32 k) : indices(k, 0xdeadU), values(k) {}
  selection::Result<Bits> result() { return {indices.data(), values.data(), &first_nan, nullptr}; }
  std::vector<u32> indices;
  std::vector<Bits> values;
  u32 first_nan = 0;
};

// The one tensor of a selection without feedback.
template <class Bits>
selection::Tensor plain(const Bits* x) {
  return {const_cast<Bits*>(x), nullptr, nullptr, 0};
}

template <class Bits>
void matches(const Bits* x, u64 n, u32 k, selection::Infinity infinity) {
  const std::vector<u32> wanted = sorted_twin(x, n, k);
  for_every_order([&](EmulatedLauncher& launcher) {
    Output<Bits> out(k);
    Workspace workspace(selection::workspace_bytes<Bits>(n, k, 1));
    const selection::Tensor from = plain(x);
    selection::top_k(launcher, &from, 1, n, k, infinity, out.result(), workspace.get());
    CHECK(out.indices == wanted);
    bool same = true;
    for (u32 i = 0; i < k; ++i) same = same && out.values[i] == x[wanted[i]];
    CHECK(same);
    CHECK(out.first_nan == first_nan_of(x, n, infinity));
  });
}

template <class Bits, class Make>
void every_size(selection::Infinity infinity, const Make& make) {
  for (const u64 n : {1U, 2U, 3U, 255U, 4095U, 4096U, 4097U, 20011U}) {
    // One element more than needed in front: `x` is then aligned as its elements are and no better.
    std::vector<Bits> memory(n + 1);
    for (u64 i = 0; i < n; ++i) memory[i + 1] = make(i);
    for (const u64 k : {u64{1}, n / 100, n / 10, n / 2, n - 1, n}) {
      if (k >= 1) matches(memory.data() + 1, n, static_cast<u32>(k), infinity);
    }
  }
}

void random_values_are_selected_exactly() {
  Numbers numbers(1);
  every_size<u32>(selection::kFloat32, [&](u64) { return edge::cuda::bits_of(numbers.value()); });
  every_size<u16>(selection::kBfloat16, [&](u64) {
    return static_cast<u16>(edge::cuda::bits_of(numbers.value()) >> 16U);
  });
  every_size<u16>(selection::kFloat16, [&](u64) {
    return static_cast<u16>(numbers.bits() % 0x7c01U | (numbers.bits() << 15U));
  });
}

void ties_go_to_the_lower_index() {
  Numbers numbers(2);
  every_size<u32>(selection::kFloat32, [](u64) { return edge::cuda::bits_of(-1.5F); });
  every_size<u32>(selection::kFloat32, [](u64 i) { return i % 2 == 0 ? 0U : 0x80000000U; });
  every_size<u32>(selection::kFloat32,
                  [&](u64) { return edge::cuda::bits_of(numbers.bits() % 2 == 0 ? 0.5F : -2.0F); });
}

void sorted_inputs_and_odd_values_are_ordered() {
  const float infinity = std::numeric_limits<float>::infinity();
  const float odd[] = {0.0F,      -0.0F,    1e-45F,  -1e-40F, 1.17549435e-38F,
                       -infinity, infinity, 3.4e38F, 1.0F};
  Numbers numbers(3);
  every_size<u32>(selection::kFloat32,
                  [](u64 i) { return edge::cuda::bits_of(static_cast<float>(i)); });
  every_size<u32>(selection::kFloat32, [](u64 i) {
    return edge::cuda::bits_of(-1.0F / (1.0F + static_cast<float>(i)));
  });
  every_size<u32>(selection::kFloat32,
                  [&](u64) { return edge::cuda::bits_of(odd[numbers.bits() % 9]); });
}

void the_first_nan_is_reported_and_counts_as_largest() {
  const u32 nan = edge::cuda::bits_of(std::numeric_limits<float>::quiet_NaN());
  Numbers numbers(4);
  every_size<u32>(selection::kFloat32, [&](u64 i) {
    return i > 40 && i % 97 == 0 ? nan : edge::cuda::bits_of(numbers.value());
  });
}

// More elements in the bucket of rank k than the candidates hold: the input itself is read again.
void a_full_bucket_reads_the_input_again() {
  constexpr u64 kSize = 70001;
  Numbers numbers(5);
  std::vector<u32> x(kSize);
  for (u32& bits : x) bits = edge::cuda::bits_of(1.0F + 0.05F * numbers.value() * numbers.value());
  CHECK(selection::capacity_of(kSize, 9) < kSize);
  matches(x.data(), kSize, 9, selection::kFloat32);
  matches(x.data(), kSize, 40000, selection::kFloat32);
}

// Many tiles under way at once: the counts before a tile come from more words than one window
// holds.
void blocks_at_once_agree_on_the_order() {
  constexpr u64 kSize = 100 * selection::kTile - 3;
  Numbers numbers(7);
  std::vector<u32> x(kSize);
  for (u32& bits : x) bits = edge::cuda::bits_of(static_cast<float>(numbers.bits() % 1000));
  for (const u32 k : {1U, 40000U, static_cast<u32>(kSize / 2)}) {
    EmulatedLauncher launcher(18, Order::concurrent);
    Output<u32> out(k);
    Workspace workspace(selection::workspace_bytes<u32>(kSize, k, 1));
    const selection::Tensor from = plain(x.data());
    selection::top_k(launcher, &from, 1, kSize, k, selection::kFloat32, out.result(),
                     workspace.get());
    CHECK(out.indices == sorted_twin(x.data(), kSize, k));
  }
}

struct Form {
  bool momentum, nesterov, masked, nan;
};

// One step by plain loops, bit for bit: this file is compiled without fused multiply-adds too.
void accumulate_twin(const Form& form, float factor, const std::vector<float>& gradient,
                     std::vector<float>& momentum, std::vector<float>& residual) {
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    const float g = gradient[i];
    if (!form.momentum) {
      residual[i] = residual[i] + g;
    } else if (form.nesterov) {
      momentum[i] = factor * (momentum[i] + g);
      residual[i] = residual[i] + (momentum[i] + g);
    } else {
      momentum[i] = factor * momentum[i] + g;
      residual[i] = residual[i] + momentum[i];
    }
  }
}

void feedback_is_carried_and_sent_entries_are_cleared(const Form& form) {
  constexpr u64 kSize = 9001;
  constexpr float kFactor = 0.9F;
  for_every_order([&](EmulatedLauncher& launcher) {
    Numbers numbers(6);
    std::vector<float> residual(kSize), momentum(kSize), gradient(kSize), v(kSize), u(kSize);
    for (const u32 k : {1U, 90U, 9001U, 500U}) {
      for (float& g : gradient) g = numbers.value();
      if (form.nan) gradient[77] = std::numeric_limits<float>::quiet_NaN();
      accumulate_twin(form, kFactor, gradient, u, v);
      std::vector<u32> accumulated(kSize);
      for (u64 i = 0; i < kSize; ++i) accumulated[i] = edge::cuda::bits_of(v[i]);
      Output<u32> out(k);
      Workspace workspace(selection::workspace_bytes<u32>(kSize, k, 1));
      const selection::Tensor from{residual.data(), gradient.data(),
                                   form.momentum ? momentum.data() : nullptr, 0};
      selection::top_k_feedback(launcher, &from, 1, kSize, k, {kFactor, form.nesterov, form.masked},
                                out.result(), workspace.get());
      CHECK(out.indices == sorted_twin(accumulated.data(), kSize, k));
      CHECK(out.first_nan == (form.nan ? 77U : selection::kNone));
      for (const u32 at : out.indices) {
        if (!form.nan) v[at] = 0.0F;
        if (!form.nan && form.masked) u[at] = 0.0F;
      }
      CHECK(std::memcmp(residual.data(), v.data(), kSize * sizeof(float)) == 0);
      CHECK(std::memcmp(momentum.data(), u.data(), kSize * sizeof(float)) == 0);
    }
  });
}

// All that reach a threshold, counted even where there is no room for them.
void a_threshold_is_met_or_exceeded() {
  constexpr u64 kSize = 9001;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float threshold : {0.0F, 0.25F, 3.0F, 7.0F, 100.0F}) {
    for_every_order([&](EmulatedLauncher& launcher) {
      Numbers numbers(10);
      std::vector<float> x(kSize);
      for (float& value : x) value = static_cast<float>(numbers.bits() % 64) / 4.0F - 8.0F;
      x[5000] = threshold == 7.0F ? nan : x[5000];
      std::vector<u32> bits(kSize), wanted;
      for (u64 i = 0; i < kSize; ++i) {
        bits[i] = edge::cuda::bits_of(x[i]);
        if (!(std::abs(x[i]) < threshold)) wanted.push_back(static_cast<u32>(i));
      }
      const u32 room = std::min(4000U, static_cast<u32>(wanted.size()));
      Output<u32> out(room);
      u32 count = 7;
      Workspace workspace(selection::above_workspace_bytes<u32>(kSize));
      selection::above(launcher, plain(bits.data()), kSize, edge::cuda::bits_of(threshold),
                       selection::kFloat32, room, &count, out.result(), workspace.get());
      CHECK(count == wanted.size());
      CHECK(std::equal(out.indices.begin(), out.indices.end(), wanted.begin()));
      bool same = true;
      for (u32 i = 0; i < room; ++i) same = same && out.values[i] == bits[wanted[i]];
      CHECK(same);
      CHECK(out.first_nan == (threshold == 7.0F ? 5000U : selection::kNone));
    });
  }
}

// Tensors of all sizes, empty and of one element too, at places that are not aligned: one joined
// array is the twin.
std::vector<u64> sizes_of_a_tree() {
  std::vector<u64> sizes = {0, 1, 1, 2, 0, 0, 3, 4097, 1, 5, 8192, 0, 33};
  for (u64 i = 0; i < 70; ++i) sizes.push_back(i % 9);  // more than one deposit holds
  return sizes;
}

struct Tree {
  explicit Tree(u32 seed) {
    Numbers numbers(seed);
    u64 first = 0;
    for (const u64 size : sizes_of_a_tree()) {
      std::vector<float> x(size), g(size), u(size);
      for (float& value : x) value = static_cast<float>(numbers.bits() % 50) - 25.0F;
      for (float& value : g) value = numbers.value();
      for (float& value : u) value = numbers.value();
      residuals.push_back(x);
      gradients.push_back(g);
      momenta.push_back(u);
      firsts.push_back(first);
      first += size;
    }
    firsts.push_back(first);
  }
  u32 count() const { return static_cast<u32>(residuals.size()); }
  u64 size() const { return firsts.back(); }
  std::vector<selection::Tensor> tensors(bool feedback) {
    std::vector<selection::Tensor> out;
    for (u32 t = 0; t < count(); ++t) {
      out.push_back({residuals[t].data(), feedback ? gradients[t].data() : nullptr,
                     feedback ? momenta[t].data() : nullptr, firsts[t]});
    }
    return out;
  }
  static std::vector<float> joined(const std::vector<std::vector<float>>& parts) {
    std::vector<float> out;
    for (const std::vector<float>& part : parts) out.insert(out.end(), part.begin(), part.end());
    return out;
  }
  std::vector<std::vector<float>> residuals, gradients, momenta;
  std::vector<u64> firsts;
};

void a_tree_is_selected_from_as_if_joined(bool feedback, u32 k) {
  for_every_order([&](EmulatedLauncher& launcher) {
    Tree tree(8);
    const u64 n = tree.size();
    std::vector<float> v = Tree::joined(tree.residuals);
    std::vector<float> u = Tree::joined(tree.momenta);
    if (feedback)
      accumulate_twin({true, false, true, false}, 0.5F, Tree::joined(tree.gradients), u, v);
    std::vector<u32> bits(n);
    for (u64 i = 0; i < n; ++i) bits[i] = edge::cuda::bits_of(v[i]);
    const std::vector<u32> wanted = sorted_twin(bits.data(), n, k);
    Output<u32> out(k);
    std::vector<u32> starts(tree.count() + 1, 0xdeadU);
    selection::Result<u32> result = out.result();
    result.starts = starts.data();
    Workspace workspace(selection::workspace_bytes<u32>(n, k, tree.count()));
    const std::vector<selection::Tensor> tensors = tree.tensors(feedback);
    if (feedback) {
      selection::top_k_feedback(launcher, tensors.data(), tree.count(), n, k, {0.5F, false, true},
                                result, workspace.get());
    } else {
      selection::top_k(launcher, tensors.data(), tree.count(), n, k, selection::kFloat32, result,
                       workspace.get());
    }
    CHECK(starts[0] == 0 && starts[tree.count()] == k);
    bool same = true;
    for (u32 t = 0; t < tree.count(); ++t) {
      for (u32 i = starts[t]; i < starts[t + 1]; ++i) {
        same = same && out.indices[i] + tree.firsts[t] == wanted[i] &&
               out.values[i] == bits[wanted[i]];
      }
    }
    CHECK(same);
    for (const u32 at : wanted) {
      if (feedback) u[at] = v[at] = 0.0F;
    }
    CHECK(Tree::joined(tree.residuals) == v);
    CHECK(Tree::joined(tree.momenta) == u);
  });
}

}  // namespace

int main() {
  random_values_are_selected_exactly();
  ties_go_to_the_lower_index();
  sorted_inputs_and_odd_values_are_ordered();
  the_first_nan_is_reported_and_counts_as_largest();
  a_full_bucket_reads_the_input_again();
  blocks_at_once_agree_on_the_order();
  feedback_is_carried_and_sent_entries_are_cleared({false, false, false, false});
  feedback_is_carried_and_sent_entries_are_cleared({true, false, true, false});
  feedback_is_carried_and_sent_entries_are_cleared({true, true, false, false});
  feedback_is_carried_and_sent_entries_are_cleared({true, true, true, true});
  for (const u32 k : {1U, 100U, 12000U}) {
    a_tree_is_selected_from_as_if_joined(false, k);
    a_tree_is_selected_from_as_if_joined(true, k);
  }
  a_threshold_is_met_or_exceeded();
  return check::finish();
}
