// Coders and quantisers at the edges of their memory: exact allocations, every tail, every length a
// stream is cut to, changed bits, on every instruction set.
#include <cmath>
#include <cstring>
#include <limits>

#include "coder_cases.h"
#include "core/cpu.h"

namespace {

using coders::Bytes;
using coders::Numbers;
using edge::Index;

class Random {
 public:
  std::uint32_t bits() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return static_cast<std::uint32_t>(state_ >> 32);
  }
  std::uint32_t below(std::uint32_t n) { return bits() % n; }

 private:
  std::uint64_t state_ = 1;
};

Numbers drawn_indices(Index n, std::uint32_t one_in, Random& random) {
  Numbers indices;
  for (Index i = 0; i < n; ++i) {
    if (random.below(one_in) == 0) indices.push_back(static_cast<std::int32_t>(i));
  }
  return {indices.begin(), indices.end()};
}

// Every prefix is refused; a changed bit is refused or gives values that keep the promises.
template <class Survives>
void break_stream(const Bytes& stream, const Survives& survives, Random& random) {
  for (std::size_t size = 0; size < stream.size(); ++size) {
    survives(Bytes(stream.begin(), stream.begin() + static_cast<std::ptrdiff_t>(size)));
  }
  for (int change = 0; change < 200 && !stream.empty(); ++change) {
    Bytes changed = stream;
    const auto size = static_cast<std::uint32_t>(stream.size());
    changed[random.below(size)] ^= static_cast<std::uint8_t>(1U << random.below(8));
    if (change % 2 == 0) changed[random.below(size)] = static_cast<std::uint8_t>(random.bits());
    survives(changed);
  }
}

void gaps(Random& random) {
  constexpr Index kMost = edge::kMaxPlaces;
  for (const std::uint32_t one_in : {1U, 2U, 10U, 100U, 3000U}) {
    for (const Index n : {1, 255, 256, 257, 3000}) {
      const Numbers indices = drawn_indices(n, one_in, random);
      const Bytes stream = coders::gaps_written(indices, n);
      CHECK(coders::gaps_read(stream, n, n) == indices);
      for (std::size_t size = 0; size < stream.size(); ++size) {
        const Bytes cut(stream.begin(), stream.begin() + static_cast<std::ptrdiff_t>(size));
        CHECK(!coders::gaps_read(cut, n, n));
      }
      break_stream(stream, [n](const Bytes& bytes) { coders::gaps_survive(bytes, n); }, random);
    }
  }
  // A jump behind a run, and the longest of all values.
  Numbers far(300);
  for (std::size_t i = 0; i < far.size(); ++i) far[i] = static_cast<std::int32_t>(i);
  far.back() = static_cast<std::int32_t>(kMost - 1);
  CHECK(coders::gaps_read(coders::gaps_written(far, kMost), kMost, kMost) == far);
  // Bytes of one kind: every form, as far as they go.
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (const Index n : {Index{1000}, kMost}) {
      Bytes stream(64, static_cast<std::uint8_t>(byte));
      stream[0] = 100;
      coders::gaps_survive(stream, n);
    }
  }
}

void rans(Random& random) {
  for (const int ways : {1, 2, 4}) {
    for (const bool wide : {false, true}) {
      const edge::RansForm form = {wide, ways};
      for (const std::size_t count : {0U, 1U, 3U, 4U, 255U, 257U, 600U}) {
        Numbers symbols(count);
        for (std::int32_t& symbol : symbols) {
          symbol = random.below(50) == 0 ? static_cast<std::int32_t>(random.bits())
                                         : static_cast<std::int32_t>(random.below(9)) - 3;
        }
        const Bytes stream = coders::rans_written(symbols, form);
        CHECK(coders::rans_read(stream, count, form) == symbols);
        break_stream(
            stream, [&](const Bytes& bytes) { coders::rans_survives(bytes, count, form); }, random);
      }
      // Escapes alone fill the buffer faster than anything else.
      Numbers far(1000, std::numeric_limits<std::int32_t>::min());
      CHECK(coders::rans_read(coders::rans_written(far, form), far.size(), form) == far);
    }
  }
}

// Floats at an address that is 4 modulo 16 or more, ending with the allocation.
std::vector<float> drawn_floats(Index n, Random& random) {
  std::vector<float> values(static_cast<std::size_t>(n) + 1);
  for (float& value : values) {
    value = (static_cast<float>(random.bits() >> 8) / 8388608.0F - 1.0F) *
            (random.below(9) == 0 ? 1e-39F : 3.0F);
  }
  return values;
}

struct Quantised {
  std::vector<std::int8_t> q;
  std::vector<float> scales, back;
  bool operator==(const Quantised& other) const {
    return q == other.q && scales == other.scales && back == other.back;
  }
};

Quantised quantised(const edge::Kernels& kernels, edge::QuantizeArgs args, Index workers) {
  const bool sign = args.rounding == edge::Rounding::sign;
  const auto blocks = static_cast<std::size_t>((args.n + args.block - 1) / args.block);
  Quantised to;
  to.q.resize(static_cast<std::size_t>(sign ? (args.n + 7) / 8 : args.n));
  to.scales.resize(blocks);
  to.back.resize(static_cast<std::size_t>(args.n));
  std::vector<Index> first_bad(static_cast<std::size_t>(workers));
  args.q = to.q.data();
  args.scales = to.scales.data();
  args.first_bad = first_bad.data();
  const edge::DequantizeArgs back = {args.q, args.scales, to.back.data(), args.n, args.block, sign};
  for (Index w = 0; w < workers; ++w) kernels.quantize(args, {w, workers, nullptr});
  for (Index w = 0; w < workers; ++w) kernels.dequantize(back, {w, workers, nullptr});
  for (const Index bad : first_bad) CHECK(bad == -1);
  return to;
}

void quantisers(Random& random) {
  const auto available = edge::available_kernels();
  for (const Index n : {0, 1, 7, 8, 9, 16, 31, 33, 255, 256, 257, 700}) {
    const std::vector<float> x = drawn_floats(n, random);
    for (const Index block : {8, 24, 256, 1024}) {
      for (const edge::Rounding rounding :
           {edge::Rounding::nearest, edge::Rounding::stochastic, edge::Rounding::sign}) {
        for (const edge::Norm norm : {edge::Norm::max, edge::Norm::l2}) {
          edge::QuantizeArgs args;
          args.x = x.data() + 1;
          args.n = n;
          args.block = block;
          args.rounding = rounding;
          args.norm = rounding == edge::Rounding::stochastic ? norm : edge::Norm::max;
          args.levels = rounding == edge::Rounding::stochastic ? 5.0F : 127.0F;
          args.seed = static_cast<std::uint64_t>(n);
          const Quantised first = quantised(*available.front(), args, 1);
          for (const edge::Kernels* kernels : available) {
            CHECK(quantised(*kernels, args, 1) == first);
            CHECK(quantised(*kernels, args, 3) == first);
          }
        }
      }
    }
  }
}

std::vector<std::uint16_t> to_half(const edge::Kernels& kernels, const std::vector<float>& x,
                                   edge::Half half) {
  std::vector<std::uint16_t> h(x.size() - 1);
  edge::ConvertArgs args;
  args.x = x.data() + 1;
  args.out = h.data();
  args.n = static_cast<Index>(h.size());
  args.half = half;
  for (Index w = 0; w < 3; ++w) kernels.convert_half(args, {w, 3, nullptr});
  return h;
}

std::vector<float> from_half(const edge::Kernels& kernels, const std::vector<std::uint16_t>& h,
                             edge::Half half) {
  std::vector<float> x(h.size());
  edge::ConvertArgs args;
  args.h = h.data();
  args.y = x.data();
  args.n = static_cast<Index>(h.size());
  args.half = half;
  for (Index w = 0; w < 3; ++w) kernels.convert_half(args, {w, 3, nullptr});
  return x;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Any bits at all, NaN and infinities among them.
void halves(Random& random) {
  const auto available = edge::available_kernels();
  for (const Index n : {0, 1, 3, 15, 16, 17, 63, 64, 65, 5000}) {
    std::vector<float> x(static_cast<std::size_t>(n) + 1);
    std::vector<std::uint16_t> h(static_cast<std::size_t>(n));
    for (float& value : x) {
      const std::uint32_t bits = random.bits();
      std::memcpy(&value, &bits, sizeof value);
    }
    for (std::uint16_t& value : h) value = static_cast<std::uint16_t>(random.bits());
    for (const edge::Kernels* kernels : available) {
      for (const edge::Half half : {edge::Half::to_float16, edge::Half::to_bfloat16}) {
        CHECK(to_half(*kernels, x, half) == to_half(*available.front(), x, half));
      }
      for (const edge::Half half : {edge::Half::from_float16, edge::Half::from_bfloat16}) {
        CHECK(same_bits(from_half(*kernels, h, half), from_half(*available.front(), h, half)));
      }
    }
  }
  // Halfway between two float16, and just above; the largest one's half unit; subnormals.
  const std::vector<float> edges = {0.0F,     1.00048828125F, 1.0004884F,      65519.99F,
                                    65520.0F, 5.96e-08F,      2.98023224e-08F, -1e-40F};
  const std::vector<std::uint16_t> expected = {0x3C00, 0x3C01, 0x7BFF, 0x7C00, 1, 0, 0x8000};
  for (const edge::Kernels* kernels : available) {
    CHECK(to_half(*kernels, edges, edge::Half::to_float16) == expected);
  }
}

}  // namespace

int main() {
  Random random;
  gaps(random);
  rans(random);
  quantisers(random);
  halves(random);
  return check::finish();
}
