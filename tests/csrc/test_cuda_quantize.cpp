// Quantisers on a device, run by the emulation, against the processor's: the same bits.
#include <cmath>
#include <cstring>
#include <limits>

#include "core/cpu.h"
#include "emulated.h"
#include "kernels/kernels.h"
#include "kernels/quantize.cuh"

namespace {

using namespace emulated;
using edge::Index;
namespace quantizing = edge::cuda::quantizing;
using quantizing::Half;

const edge::Kernels& processor() { return *edge::available_kernels().back(); }

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Every exponent, ties, subnormals, both zeros, infinities, NaN of several kinds.
std::vector<float> odd_floats() {
  std::vector<float> x;
  Numbers numbers(1);
  for (u32 exponent = 0; exponent < 256; ++exponent) {
    for (const u32 mantissa : {0U, 1U, 0x1000U, 0x1001U, 0x3000U, 0x8000U, 0x18000U, 0x7FFFFFU,
                               numbers.bits() % 0x800000U}) {
      x.push_back(edge::cuda::float_of(exponent << 23U | mantissa));
      x.push_back(edge::cuda::float_of(0x80000000U | exponent << 23U | mantissa));
    }
  }
  x.push_back(1.0F);  // an odd number of elements
  return x;
}

template <Half kHalf>
void narrows_as_the_processor(edge::Half half) {
  const std::vector<float> x = odd_floats();
  std::vector<u16> wanted(x.size()), got(x.size());
  edge::ConvertArgs args;
  args.x = x.data(), args.out = wanted.data(), args.n = static_cast<Index>(x.size()),
  args.half = half;
  processor().convert_half(args, {});
  for_every_order([&](EmulatedLauncher& launcher) {
    quantizing::convert<kHalf>(launcher, {x.data(), nullptr, nullptr, got.data(), x.size()});
    CHECK(same_bits(got, wanted));
  });
}

template <Half kHalf>
void widens_as_the_processor(edge::Half half) {
  std::vector<u16> h(65536);
  for (u32 i = 0; i < 65536; ++i) h[i] = static_cast<u16>(i);
  std::vector<float> wanted(h.size()), got(h.size());
  edge::ConvertArgs args;
  args.h = h.data(), args.y = wanted.data(), args.n = static_cast<Index>(h.size()),
  args.half = half;
  processor().convert_half(args, {});
  EmulatedLauncher launcher(3, Order::shuffled);
  quantizing::convert<kHalf>(launcher, {nullptr, h.data(), got.data(), nullptr, h.size()});
  CHECK(same_bits(got, wanted));
}

struct Form {
  edge::Rounding rounding;
  edge::Norm norm;
  float levels;
};

struct Coded {
  std::vector<unsigned char> q;
  std::vector<float> scales;
};

Coded on_processor(const Form& form, const std::vector<float>& x, u64 block, u64 seed) {
  Coded out{std::vector<unsigned char>(x.size(), 0x55),
            std::vector<float>((x.size() + block - 1) / block)};
  Index first_bad = -1;
  edge::QuantizeArgs args;
  args.x = x.data(), args.q = out.q.data(), args.scales = out.scales.data(),
  args.first_bad = &first_bad;
  args.n = static_cast<Index>(x.size()), args.block = static_cast<Index>(block);
  args.rounding = form.rounding, args.norm = form.norm, args.levels = form.levels, args.seed = seed;
  processor().quantize(args, {});
  CHECK(first_bad == -1);
  return out;
}

quantizing::Quantize::Args args_of(const Form& form, const std::vector<float>& x, u64 block,
                                   Coded& out, u32& first_bad) {
  quantizing::Quantize::Args args{};
  args.x = x.data(), args.q = out.q.data(), args.scales = out.scales.data(),
  args.first_bad = &first_bad;
  args.n = x.size(), args.block = block, args.levels = form.levels;
  args.rounding = static_cast<quantizing::Rounding>(form.rounding);
  args.norm = static_cast<quantizing::Norm>(form.norm);
  return args;
}

std::vector<float> read_back(bool on_device, const Coded& coded, u64 n, u64 block, bool sign) {
  std::vector<float> x(n);
  if (on_device) {
    EmulatedLauncher launcher(2, Order::reverse);
    quantizing::dequantize(launcher,
                           {coded.q.data(), coded.scales.data(), x.data(), n, block, sign});
  } else {
    processor().dequantize({coded.q.data(), coded.scales.data(), x.data(), static_cast<Index>(n),
                            static_cast<Index>(block), sign},
                           {});
  }
  return x;
}

void codes_as_the_processor(const Form& form, u64 n, u64 block, float size) {
  Numbers numbers(static_cast<u32>(n + block));
  std::vector<float> x(n);
  for (float& value : x) value = size * numbers.value();
  const u64 seed = 0x123456789ABCDEFU + n;
  const Coded wanted = on_processor(form, x, block, seed);
  for_every_order([&](EmulatedLauncher& launcher) {
    Coded got{std::vector<unsigned char>(n, 0x55), std::vector<float>(wanted.scales.size())};
    u32 first_bad = 0;
    quantizing::quantize(launcher, args_of(form, x, block, got, first_bad), seed);
    CHECK(first_bad == 0xFFFFFFFFU);
    CHECK(same_bits(got.q, wanted.q));
    CHECK(same_bits(got.scales, wanted.scales));
  });
  const bool sign = form.rounding == edge::Rounding::sign;
  CHECK(
      same_bits(read_back(true, wanted, n, block, sign), read_back(false, wanted, n, block, sign)));
}

void every_form_size_and_magnitude_codes_alike() {
  using edge::Norm;
  using edge::Rounding;
  const Form forms[] = {{Rounding::nearest, Norm::max, 127.0F},
                        {Rounding::stochastic, Norm::l2, 15.0F},
                        {Rounding::stochastic, Norm::max, 1.0F},
                        {Rounding::sign, Norm::max, 127.0F}};
  for (const Form& form : forms) {
    for (const u64 n : {1U, 7U, 255U, 256U, 257U, 5001U}) {
      for (const u64 block : {8U, 256U, 4096U, 4104U, 100000U})
        codes_as_the_processor(form, n, block, 1.0F);
    }
    for (const float size : {0.0F, 1e-40F, 1e-36F, 1e-20F, 1e30F, 3e38F})
      codes_as_the_processor(form, 1000, 64, size);
  }
  codes_as_the_processor(forms[0], 300, 1, 1.0F);
  codes_as_the_processor(forms[1], 300, 17, 1.0F);
}

void a_value_that_is_not_finite_is_found() {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const edge::Rounding rounding : {edge::Rounding::nearest, edge::Rounding::sign}) {
      const Form form{rounding, edge::Norm::max, 127.0F};
      std::vector<float> x(1000, -1.0F);
      x[700] = x[300] = x[301] = -bad;
      for_every_order([&](EmulatedLauncher& launcher) {
        Coded got{std::vector<unsigned char>(1000, 0x55), std::vector<float>(16)};
        u32 first_bad = 0;
        quantizing::quantize(launcher, args_of(form, x, 64, got, first_bad), 0);
        CHECK(first_bad == 300);
        CHECK(std::isnan(got.scales[300 / 64]) && std::isnan(got.scales[700 / 64]));
        CHECK(got.q[rounding == edge::Rounding::sign ? 300 / 8 : 300] == 0);
        CHECK(!std::isnan(got.scales[0]) && got.q[0] != 0);
      });
    }
  }
}

}  // namespace

int main() {
  narrows_as_the_processor<Half::to_float16>(edge::Half::to_float16);
  narrows_as_the_processor<Half::to_bfloat16>(edge::Half::to_bfloat16);
  widens_as_the_processor<Half::from_float16>(edge::Half::from_float16);
  widens_as_the_processor<Half::from_bfloat16>(edge::Half::from_bfloat16);
  every_form_size_and_magnitude_codes_alike();
  a_value_that_is_not_finite_is_found();
  return check::finish();
}
