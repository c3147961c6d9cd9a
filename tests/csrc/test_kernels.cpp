// Kernels at the edges of their memory: every tail, misaligned operands that end where an
// allocation ends (so that AddressSanitizer sees one float too many), on every instruction set,
// against plain loops.
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "kernels/conv_rows_plan.h"
#include "kernels/kernels.h"
#include "kernels/winograd_plan.h"

namespace {

using edge::Index;
using edge::Kernels;

// Floats at an address that is 4 modulo 64, ending with the allocation.
class Floats {
 public:
  explicit Floats(Index size, unsigned seed = 0) : memory_(static_cast<std::size_t>(size) + 1) {
    for (float& value : memory_) {
      seed = seed * 1664525U + 1013904223U;
      value = static_cast<float>(seed >> 8) / 8388608.0F - 1.0F;
    }
  }
  float* data() { return memory_.data() + 1; }
  float operator[](Index i) const { return memory_[static_cast<std::size_t>(i) + 1]; }

 private:
  std::vector<float> memory_;
};

bool close(float a, double b, Index terms) {
  return std::fabs(static_cast<double>(a) - b) <= 1e-6 * static_cast<double>(terms + 4);
}

void run(void (*kernel)(const edge::GemmArgs&, const edge::Worker&), const edge::GemmArgs& args,
         Index workers) {
  std::vector<float> scratch(static_cast<std::size_t>(edge::gemm_scratch_floats(args.k)));
  for (Index w = 0; w < workers; ++w) kernel(args, {w, workers, scratch.data()});
}

void gemm_case(const Kernels& kernels, Index m, Index n, Index k, bool trans_a, bool trans_b) {
  Floats a(m * k, 1), b(k * n, 2), bias(n, 3), c(m * n);
  const bool relu = (m + n + k) % 2 == 0;
  run(kernels.gemm, {a.data(), b.data(), bias.data(), c.data(), m, n, k, trans_a, trans_b, relu},
      1 + n % 3);
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) {
      double sum = static_cast<double>(bias[j]);
      for (Index l = 0; l < k; ++l) {
        sum += static_cast<double>(a[trans_a ? l * m + i : i * k + l]) *
               static_cast<double>(b[trans_b ? j * k + l : l * n + j]);
      }
      CHECK(close(c[i * n + j], relu && sum < 0.0 ? 0.0 : sum, k));
    }
  }
}

void gemm_handles_every_tail(const Kernels& kernels) {
  for (const Index m : {1, 2, 5, 6, 7, 12, 13, 97}) {
    for (const Index n : {1, 3, 4, 8, 9, 16, 17, 31, 32, 33})
      gemm_case(kernels, m, n, 1 + m % 5, m % 2 == 0, n % 2 == 0);
  }
  gemm_case(kernels, 5, 7, 1030, false, true);
  gemm_case(kernels, 7, 33, 513, true, false);
}

struct ConvCase {
  Index images, groups, channels, filters, height, width, kernel_h, kernel_w, stride, pad, dilation;
};

edge::ConvArgs args_of(const ConvCase& c) {
  edge::ConvArgs a;
  a.images = c.images, a.groups = c.groups, a.channels = c.channels, a.filters = c.filters;
  a.height = c.height, a.width = c.width, a.kernel_h = c.kernel_h, a.kernel_w = c.kernel_w;
  a.stride_h = a.stride_w = c.stride, a.dilation_h = a.dilation_w = c.dilation;
  // A signal is padded along its length alone.
  a.pad_top = c.height == 1 ? 0 : c.pad, a.pad_left = c.pad;
  a.out_height = (c.height + 2 * a.pad_top - (c.kernel_h - 1) * c.dilation - 1) / c.stride + 1;
  a.out_width = (c.width + 2 * c.pad - (c.kernel_w - 1) * c.dilation - 1) / c.stride + 1;
  return a;
}

// Calls visit(x offset, w offset, y offset) for every product of a convolution.
template <class Visit>
void each_product(const edge::ConvArgs& a, Visit visit) {
  const Index filters = a.groups * a.filters, channels = a.groups * a.channels,
              taps = a.kernel_h * a.kernel_w;
  for (Index y = 0; y < a.images * filters * a.out_height * a.out_width; ++y) {
    const Index j = y % a.out_width, i = y / a.out_width % a.out_height;
    const Index o = y / (a.out_width * a.out_height) % filters,
                n = y / (a.out_width * a.out_height * filters);
    for (Index w = 0; w < a.channels * taps; ++w) {
      const Index row = i * a.stride_h - a.pad_top + w % taps / a.kernel_w * a.dilation_h;
      const Index column = j * a.stride_w - a.pad_left + w % a.kernel_w * a.dilation_w;
      if (row < 0 || row >= a.height || column < 0 || column >= a.width) continue;
      const Index channel = o / a.filters * a.channels + w / taps;
      visit(((n * channels + channel) * a.height + row) * a.width + column,
            o * a.channels * taps + w, y);
    }
  }
}

std::vector<float> scratch_of(std::uint64_t floats) {
  return std::vector<float>(static_cast<std::size_t>(floats), NAN);
}

void conv_case(const Kernels& kernels, const ConvCase& c, Index workers) {
  edge::ConvArgs a = args_of(c);
  const Index x_size = a.images * a.groups * a.channels * a.height * a.width;
  const Index w_size = a.groups * a.filters * a.channels * a.kernel_h * a.kernel_w;
  const Index y_size = a.images * a.groups * a.filters * a.out_height * a.out_width;
  Floats x(x_size, 1), w(w_size, 2), d_y(y_size, 3), y(y_size), d_x(x_size), d_w(w_size);
  auto scratch = scratch_of(edge::conv_scratch_floats(a));
  a.x = x.data(), a.w = w.data(), a.out = y.data();
  for (Index i = 0; i < workers; ++i) kernels.conv(a, {i, workers, scratch.data()});
  scratch = scratch_of(edge::conv_grad_x_scratch_floats(a));
  a.x = d_y.data(), a.out = d_x.data();
  for (Index i = 0; i < workers; ++i) kernels.conv_grad_x(a, {i, workers, scratch.data()});
  scratch = scratch_of(edge::conv_grad_w_scratch_floats(a));
  a.x = x.data(), a.w = d_y.data(), a.out = d_w.data();
  for (Index i = 0; i < workers; ++i) kernels.conv_grad_w(a, {i, workers, scratch.data()});

  std::vector<double> y_sum(static_cast<std::size_t>(y_size)),
      x_sum(static_cast<std::size_t>(x_size));
  std::vector<double> w_sum(static_cast<std::size_t>(w_size));
  each_product(a, [&](Index xi, Index wi, Index yi) {
    y_sum[static_cast<std::size_t>(yi)] += static_cast<double>(x[xi]) * static_cast<double>(w[wi]);
    x_sum[static_cast<std::size_t>(xi)] +=
        static_cast<double>(d_y[yi]) * static_cast<double>(w[wi]);
    w_sum[static_cast<std::size_t>(wi)] +=
        static_cast<double>(d_y[yi]) * static_cast<double>(x[xi]);
  });
  for (Index i = 0; i < y_size; ++i) CHECK(close(y[i], y_sum[static_cast<std::size_t>(i)], 200));
  for (Index i = 0; i < x_size; ++i) CHECK(close(d_x[i], x_sum[static_cast<std::size_t>(i)], 200));
  for (Index i = 0; i < w_size; ++i) CHECK(close(d_w[i], w_sum[static_cast<std::size_t>(i)], 2000));
}

void convolutions_stay_inside_their_memory(const Kernels& kernels) {
  for (const ConvCase& c : {
           ConvCase{1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1},
           ConvCase{2, 1, 1, 6, 28, 28, 5, 5, 1, 2, 1},
           ConvCase{3, 1, 6, 16, 14, 14, 5, 5, 1, 0, 1},
           ConvCase{2, 3, 2, 2, 9, 11, 3, 2, 2, 1, 2},
           ConvCase{2, 5, 1, 1, 7, 7, 3, 3, 1, 1, 1},
           ConvCase{9, 1, 13, 7, 1, 1, 1, 1, 1, 0, 1},
           ConvCase{5, 1, 3, 4, 4, 5, 3, 3, 3, 4, 1},
           ConvCase{1, 1, 2, 3, 17, 70, 1, 7, 4, 3, 3},
           ConvCase{11, 1, 4, 5, 2, 2, 2, 2, 2, 1, 1},
       }) {
    conv_case(kernels, c, 1);
    conv_case(kernels, c, 4);
  }
}

// Enough images to fill the lanes of any vectors: conv_lanes.h, cut along rows and along columns.
void convolutions_of_many_images_stay_inside_their_memory(const Kernels& kernels) {
  for (const ConvCase& c : {
           ConvCase{16, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1},
           ConvCase{13, 1, 1, 6, 9, 8, 5, 5, 1, 2, 1},
           ConvCase{29, 2, 3, 4, 6, 7, 3, 2, 1, 0, 1},
           ConvCase{16, 1, 2, 13, 7, 9, 3, 3, 2, 1, 1},
           ConvCase{32, 1, 2, 2, 5, 3, 3, 3, 1, 3, 2},
           ConvCase{15, 1, 2, 3, 4, 4, 2, 3, 1, 4, 3},
           ConvCase{16, 3, 1, 1, 6, 5, 3, 3, 1, 1, 1},
           ConvCase{16, 1, 3, 2, 1, 33, 1, 5, 1, 2, 1},
           ConvCase{16, 1, 3, 5, 1, 30, 1, 4, 3, 2, 2},
           ConvCase{14, 1, 66, 2, 1, 70, 1, 3, 1, 0, 2},
           ConvCase{31, 1, 64, 3, 1, 75, 1, 5, 1, 4, 1},
           ConvCase{16, 1, 24, 7, 20, 6, 3, 3, 1, 1, 1},
           ConvCase{16, 1, 2, 2, 3, 1, 3, 1, 1, 1, 1},
       }) {
    conv_case(kernels, c, 1);
    conv_case(kernels, c, 3);
  }
}

// Strides, dilation and large kernels with many channels: conv_rows.h.
void channels_side_by_side_stay_inside_their_memory(const Kernels& kernels) {
  for (const ConvCase& c : {
           ConvCase{2, 1, 16, 32, 9, 11, 3, 3, 2, 1, 1},
           ConvCase{1, 2, 13, 12, 9, 11, 3, 3, 2, 1, 1},
           ConvCase{1, 1, 16, 16, 5, 5, 2, 2, 4, 0, 1},
           ConvCase{1, 1, 60, 130, 6, 6, 3, 3, 2, 1, 1},
           ConvCase{1, 1, 12, 14, 7, 60, 3, 2, 3, 1, 2},
           ConvCase{1, 1, 24, 32, 12, 9, 7, 7, 1, 3, 1},
           ConvCase{1, 1, 16, 16, 3, 300, 3, 3, 2, 1, 1},
       }) {
    const edge::ConvArgs a = args_of(c);
    CHECK(edge::conv_rows::correlate_blocks(edge::conv_rows::forward_problem(a)).rows > 0);
    CHECK(edge::conv_rows::grad_w_blocks(edge::conv_rows::forward_problem(a)).rows > 0);
    conv_case(kernels, c, 1);
    conv_case(kernels, c, 3);
  }
}

// Stride 1, three and five taps, many channels: winograd.h, with every way to cut tiles.
void minimal_filtering_stays_inside_its_memory(const Kernels& kernels) {
  for (const ConvCase& c : {
           ConvCase{1, 1, 16, 16, 8, 7, 3, 3, 1, 1, 1},
           ConvCase{7, 1, 16, 32, 4, 4, 3, 3, 1, 1, 1},
           ConvCase{2, 2, 17, 16, 10, 10, 3, 3, 1, 0, 1},
           ConvCase{1, 1, 32, 34, 8, 8, 5, 5, 1, 2, 1},
           ConvCase{1, 1, 16, 16, 5, 140, 3, 3, 1, 4, 1},
           ConvCase{3, 1, 48, 64, 1, 50, 1, 5, 1, 2, 1},
           ConvCase{1, 1, 70, 96, 5, 6, 3, 3, 1, 2, 1},
       }) {
    const edge::ConvArgs a = args_of(c);
    CHECK(edge::winograd::grad_w_blocks(a).images > 0);
    CHECK(edge::winograd::correlate_blocks(a, edge::winograd::forward_problem(a)).images > 0);
    conv_case(kernels, c, 1);
    conv_case(kernels, c, 3);
  }
}

// One channel a group: narrower than a vector, whole vectors, overlapping ones, bands.
void depthwise_convolutions_stay_inside_their_memory(const Kernels& kernels) {
  for (const ConvCase& c : {
           ConvCase{3, 2, 1, 1, 4, 4, 3, 3, 1, 1, 1},
           ConvCase{2, 3, 1, 1, 5, 3, 3, 3, 1, 1, 1},
           ConvCase{2, 3, 1, 1, 6, 8, 3, 3, 1, 1, 1},
           ConvCase{2, 3, 1, 1, 3, 32, 3, 3, 1, 1, 1},
           ConvCase{2, 3, 1, 1, 7, 12, 3, 3, 1, 1, 1},
           ConvCase{2, 2, 1, 1, 9, 17, 5, 5, 1, 2, 1},
           ConvCase{2, 2, 1, 1, 8, 8, 3, 3, 2, 1, 1},
           ConvCase{1, 2, 1, 1, 11, 39, 5, 5, 2, 0, 1},
           ConvCase{2, 2, 1, 1, 12, 33, 3, 4, 3, 2, 1},
           ConvCase{1, 3, 1, 1, 10, 21, 2, 3, 2, 5, 2},
           ConvCase{1, 1, 1, 1, 6, 9, 4, 2, 4, 3, 2},
           ConvCase{2, 2, 1, 1, 1, 70, 1, 5, 1, 2, 1},
           ConvCase{1, 2, 1, 1, 70, 66, 3, 3, 1, 1, 1},
           ConvCase{1, 1, 1, 1, 75, 120, 3, 3, 2, 1, 1},
       }) {
    conv_case(kernels, c, 1);
    conv_case(kernels, c, 3);
  }
}

// 1 x 1 and KH x 1 taps: tiles inside an image and across images, several passes over the channels,
// chunks.
void matrix_convolutions_stay_inside_their_memory(const Kernels& kernels) {
  for (const ConvCase& c : {
           ConvCase{1, 1, 13, 14, 4, 8, 1, 1, 1, 0, 1},
           ConvCase{5, 1, 3, 25, 4, 4, 1, 1, 1, 0, 1},
           ConvCase{3, 2, 4, 7, 7, 7, 1, 1, 1, 0, 1},
           ConvCase{17, 1, 5, 2, 1, 3, 1, 1, 1, 0, 1},
           ConvCase{2, 1, 530, 13, 3, 11, 1, 1, 1, 0, 1},
           ConvCase{2, 1, 4, 3, 32, 33, 1, 1, 1, 0, 1},
           ConvCase{2, 1, 3, 14, 7, 66, 1, 1, 2, 0, 1},
           ConvCase{3, 2, 5, 2, 8, 5, 1, 1, 3, 0, 1},
           ConvCase{2, 2, 3, 14, 5, 37, 3, 1, 1, 0, 1},
           ConvCase{1, 1, 175, 2, 4, 32, 3, 1, 1, 0, 1},
       }) {
    conv_case(kernels, c, 1);
    conv_case(kernels, c, 3);
  }
}

void one_large_convolution_needs_blocks(const Kernels& kernels) {
  conv_case(kernels, {1, 1, 70, 3, 40, 60, 3, 3, 1, 1, 1}, 2);
}

void pooling_handles_every_width(const Kernels& kernels) {
  for (Index width = 2; width <= 40; ++width) {
    edge::PoolArgs a;
    a.planes = 2, a.height = 5, a.width = width, a.out_height = 2, a.out_width = width / 2;
    a.kernel_h = a.kernel_w = a.stride_h = a.stride_w = 2;
    const Index places = a.planes * a.out_height * a.out_width;
    Floats x(2 * 5 * width, 7), y(places), d_x(2 * 5 * width);
    std::vector<std::uint8_t> index(static_cast<std::size_t>(places));
    a.in = x.data(), a.out = y.data(), a.index8 = index.data();
    kernels.maxpool(a, {});
    a.in = y.data(), a.out = d_x.data();
    kernels.maxpool_grad(a, {});
    double sum = 0.0, back = 0.0;
    for (Index i = 0; i < places; ++i) sum += static_cast<double>(y[i]);
    for (Index i = 0; i < 2 * 5 * width; ++i) back += static_cast<double>(d_x[i]);
    CHECK(std::fabs(sum - back) < 1e-9);  // every maximum went back to one place, nothing else did
    for (const std::uint8_t i : index) CHECK(i < 4);
  }
}

void a_wrong_pooling_index_writes_nothing(const Kernels& kernels) {
  edge::PoolArgs a;
  a.planes = 1, a.height = 3, a.width = 3, a.out_height = 2, a.out_width = 2;
  a.kernel_h = a.kernel_w = 3, a.stride_h = a.stride_w = 2, a.pad_top = a.pad_left = 1;
  Floats d_y(4, 1), d_x(9);
  for (const std::int32_t wrong : {0, -1, 9, 2147483647, -2147483647}) {
    std::vector<std::int32_t> index(4, wrong);
    a.in = d_y.data(), a.out = d_x.data(), a.index32 = index.data();
    kernels.maxpool_grad(a, {});
    CHECK(std::isfinite(d_x[0]));
  }
}

void sums_handle_every_length(const Kernels& kernels) {
  for (const Index n : {1, 3, 4, 15, 16, 17, 63, 64, 65, 130, 4097}) {
    Floats x(3 * n, 5), y(n);
    edge::ReduceArgs rows;
    rows.x = x.data(), rows.y = y.data(), rows.reduced_ndim = 1, rows.reduced_dims[0] = n,
    rows.reduced_strides[0] = 1;
    double sum = 0.0;
    for (Index i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
    kernels.reduce_sum(rows, {});
    CHECK(close(y[0], sum, n));
    edge::ReduceArgs columns;
    columns.x = x.data(), columns.y = y.data(), columns.kept_ndim = columns.reduced_ndim = 1;
    columns.kept_dims[0] = n, columns.kept_strides[0] = 1, columns.reduced_dims[0] = 3,
    columns.reduced_strides[0] = n;
    kernels.reduce_sum(columns, {});
    CHECK(close(y[n - 1],
                static_cast<double>(x[n - 1]) + static_cast<double>(x[2 * n - 1]) +
                    static_cast<double>(x[3 * n - 1]),
                3));
  }
}

void sgd_in_place_handles_every_length(const Kernels& kernels) {
  for (Index n = 1; n < 70; ++n) {
    Floats param(n, 1), before(n, 1), grad(n, 2), velocity(n, 3), old(n, 3);
    const float lr = 0.1F;
    edge::SgdArgs args{param.data(), grad.data(), &lr, velocity.data(), n, 0.9F, 0.01F, n % 2 == 0};
    for (Index w = 0; w < 3; ++w) kernels.sgd(args, {w, 3, nullptr});
    for (Index i = 0; i < n; ++i) {
      const double g = static_cast<double>(grad[i]) + 0.01 * static_cast<double>(before[i]);
      const double v = 0.9 * static_cast<double>(old[i]) + g;
      CHECK(close(velocity[i], v, 1));
      CHECK(close(param[i], static_cast<double>(before[i]) - 0.1 * (n % 2 == 0 ? g + 0.9 * v : v),
                  1));
    }
  }
}

// `a` is read by steps of the whole M where it is transposed: the last block of rows must not reach
// beyond it, nor beyond the scratch that is asked for.
void gemm_sgd_stays_inside_its_memory(const Kernels& kernels) {
  for (const Index n : {1, 17, 700, 5000}) {
    for (const Index m : {1, 13, 97, 200}) {
      const Index k = n == 17 ? 515 : 3;
      const bool trans_a = m % 2 == 1, trans_b = n % 2 == 1;
      Floats a(m * k, 1), b(k * n, 2), grad(m * n), param(m * n, 3), want(m * n, 3);
      Floats velocity(m * n, 4), want_velocity(m * n, 4);
      const float lr = 0.1F;
      edge::GemmArgs product{a.data(), b.data(), nullptr, grad.data(), m, n, k, trans_a, trans_b};
      run(kernels.gemm, product, 1);
      kernels.sgd({want.data(), grad.data(), &lr, want_velocity.data(), m * n, 0.9F, 0.01F}, {});
      product.c = nullptr;
      const edge::GemmSgdArgs args{
          product, {param.data(), nullptr, &lr, velocity.data(), m * n, 0.9F, 0.01F}};
      const auto floats = static_cast<std::size_t>(edge::gemm_sgd_scratch_floats(m, n, k));
      for (Index w = 0; w < 3; ++w) {
        std::vector<float> scratch(floats);
        kernels.gemm_sgd(args, {w, 3, scratch.data()});
      }
      bool same = true;
      for (Index i = 0; i < m * n; ++i)
        same = same && param[i] == want[i] && velocity[i] == want_velocity[i];
      CHECK(same);
    }
  }
}

}  // namespace

int main() {
  for (const Kernels* kernels : edge::available_kernels()) {
    gemm_handles_every_tail(*kernels);
    convolutions_stay_inside_their_memory(*kernels);
    convolutions_of_many_images_stay_inside_their_memory(*kernels);
    depthwise_convolutions_stay_inside_their_memory(*kernels);
    matrix_convolutions_stay_inside_their_memory(*kernels);
    channels_side_by_side_stay_inside_their_memory(*kernels);
    minimal_filtering_stays_inside_its_memory(*kernels);
    one_large_convolution_needs_blocks(*kernels);
    pooling_handles_every_width(*kernels);
    a_wrong_pooling_index_writes_nothing(*kernels);
    sums_handle_every_length(*kernels);
    sgd_in_place_handles_every_length(*kernels);
    gemm_sgd_stays_inside_its_memory(*kernels);
  }
  return check::finish();
}
