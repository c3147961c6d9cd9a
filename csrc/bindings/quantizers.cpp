#include <algorithm>
#include <array>

#include "bindings/arrays.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace edge {
namespace {

constexpr Index kMaxBlock = 2147483647;

Index blocks_of(Index n, Index block) {
  if (block < 1 || block > kMaxBlock) {
    throw py::value_error("block must be in 1..2147483647, got " + std::to_string(block));
  }
  return (n + block - 1) / block;
}

// A byte of signs belongs to one block.
void check_sign_block(Index block) {
  if (block % 8 != 0) {
    throw py::value_error("block must be a multiple of 8 for signs, got " + std::to_string(block));
  }
}

void run_convert(PyWorkspace& workspace, const ConvertArgs& args) {
  const Held held(workspace);
  const py::gil_scoped_release release;
  held->run([&](const Worker& worker) { held->kernels().convert_half(args, worker); });
}

py::array_t<std::uint16_t> to_half(PyWorkspace& workspace, const py::array& array, Half half) {
  const Span<const float> x = input<float>(array, "x", 1);
  py::array_t<std::uint16_t> h(static_cast<py::ssize_t>(x.size()));
  run_convert(workspace, {x.data(), nullptr, nullptr, h.mutable_data(), h.size(), half});
  return h;
}

py::array_t<float> from_half(PyWorkspace& workspace, const py::array& array, Half half) {
  const Span<const std::uint16_t> h = input<std::uint16_t>(array, "h", 1);
  py::array_t<float> x(static_cast<py::ssize_t>(h.size()));
  run_convert(workspace, {nullptr, h.data(), x.mutable_data(), nullptr, x.size(), half});
  return x;
}

// Fills q and scales; the first value that is not finite is named.
void run_quantize(PyWorkspace& workspace, QuantizeArgs& args) {
  std::array<Index, Workspace::kMaxThreads> first_bad;
  first_bad.fill(-1);
  args.first_bad = first_bad.data();
  {
    const Held held(workspace);
    const py::gil_scoped_release release;
    held->run([&](const Worker& worker) { held->kernels().quantize(args, worker); });
  }
  // Workers' shares are in order.
  const auto bad = std::find_if(first_bad.begin(), first_bad.end(), [](Index i) { return i >= 0; });
  if (bad != first_bad.end()) {
    throw py::value_error("x[" + std::to_string(*bad) + "] is " + std::to_string(args.x[*bad]) +
                          "; only finite values can be quantised");
  }
}

py::tuple quantize_levels(PyWorkspace& workspace, const py::array& array, Index block,
                          QuantizeArgs args) {
  const Span<const float> x = input<float>(array, "x", 1);
  args.x = x.data();
  args.n = static_cast<Index>(x.size());
  args.block = block;
  py::array_t<float> scales(blocks_of(args.n, block));
  py::array_t<std::int8_t> q(args.n);
  args.q = q.mutable_data();
  args.scales = scales.mutable_data();
  run_quantize(workspace, args);
  return py::make_tuple(q, scales);
}

py::tuple quantize_int8(PyWorkspace& workspace, const py::array& x, Index block) {
  return quantize_levels(workspace, x, block, QuantizeArgs());
}

py::tuple quantize_qsgd(PyWorkspace& workspace, const py::array& x, int levels, Index block,
                        std::uint64_t seed, bool l2) {
  if (levels < 1 || levels > 127) {
    throw py::value_error("levels must be in 1..127, got " + std::to_string(levels));
  }
  QuantizeArgs args;
  args.rounding = Rounding::stochastic;
  args.norm = l2 ? Norm::l2 : Norm::max;
  args.levels = static_cast<float>(levels);
  args.seed = seed;
  return quantize_levels(workspace, x, block, args);
}

py::tuple quantize_sign(PyWorkspace& workspace, const py::array& array, Index block) {
  const Span<const float> x = input<float>(array, "x", 1);
  QuantizeArgs args;
  args.x = x.data();
  args.n = static_cast<Index>(x.size());
  args.block = block;
  args.rounding = Rounding::sign;
  py::array_t<float> scales(blocks_of(args.n, block));
  check_sign_block(block);
  py::array_t<std::uint8_t> bits((args.n + 7) / 8);
  args.q = bits.mutable_data();
  args.scales = scales.mutable_data();
  run_quantize(workspace, args);
  return py::make_tuple(bits, scales);
}

py::array_t<float> run_dequantize(PyWorkspace& workspace, DequantizeArgs& args,
                                  const py::array& scale_array) {
  const Span<const float> scales = input<float>(scale_array, "scales", 1);
  const Index blocks = blocks_of(args.n, args.block);
  if (static_cast<Index>(scales.size()) != blocks) {
    throw py::value_error(std::to_string(args.n) + " values in blocks of " +
                          std::to_string(args.block) + " have " + std::to_string(blocks) +
                          " scales, got " + std::to_string(scales.size()));
  }
  args.scales = scales.data();
  py::array_t<float> x(args.n);
  args.x = x.mutable_data();
  const Held held(workspace);
  const py::gil_scoped_release release;
  held->run([&](const Worker& worker) { held->kernels().dequantize(args, worker); });
  return x;
}

py::array_t<float> dequantize_int8(PyWorkspace& workspace, const py::array& array,
                                   const py::array& scales, Index block) {
  const Span<const std::int8_t> q = input<std::int8_t>(array, "q", 1);
  DequantizeArgs args;
  args.q = q.data();
  args.n = static_cast<Index>(q.size());
  args.block = block;
  return run_dequantize(workspace, args, scales);
}

py::array_t<float> dequantize_sign(PyWorkspace& workspace, const py::array& array,
                                   const py::array& scales, Index n, Index block) {
  const Span<const std::uint8_t> bits = input<std::uint8_t>(array, "bits", 1);
  blocks_of(0, block);
  check_sign_block(block);
  if (n < 0 || static_cast<Index>(bits.size()) != n / 8 + (n % 8 != 0 ? 1 : 0)) {
    throw py::value_error(std::to_string(bits.size()) + " bytes of signs are not those of " +
                          std::to_string(n) + " values");
  }
  DequantizeArgs args;
  args.q = bits.data();
  args.n = n;
  args.block = block;
  args.sign = true;
  return run_dequantize(workspace, args, scales);
}

}  // namespace

void bind_quantizers(py::module_& m) {
  const auto to = [&m](const char* name, Half half) {
    m.def(
        name,
        [half](PyWorkspace& workspace, const py::array& x) { return to_half(workspace, x, half); },
        py::arg("workspace"), py::arg("x").noconvert());
  };
  const auto from = [&m](const char* name, Half half) {
    m.def(
        name,
        [half](PyWorkspace& workspace, const py::array& h) {
          return from_half(workspace, h, half);
        },
        py::arg("workspace"), py::arg("h").noconvert());
  };
  to("to_float16", Half::to_float16);
  to("to_bfloat16", Half::to_bfloat16);
  from("from_float16", Half::from_float16);
  from("from_bfloat16", Half::from_bfloat16);
  const auto workspace = py::arg("workspace");
  m.def("quantize_int8", &quantize_int8, workspace, py::arg("x").noconvert(), py::arg("block"));
  m.def("quantize_qsgd", &quantize_qsgd, workspace, py::arg("x").noconvert(), py::arg("levels"),
        py::arg("block"), py::arg("seed"), py::arg("l2"));
  m.def("quantize_sign", &quantize_sign, workspace, py::arg("x").noconvert(), py::arg("block"));
  m.def("dequantize_int8", &dequantize_int8, workspace, py::arg("q").noconvert(),
        py::arg("scales").noconvert(), py::arg("block"));
  m.def("dequantize_sign", &dequantize_sign, workspace, py::arg("bits").noconvert(),
        py::arg("scales").noconvert(), py::arg("n"), py::arg("block"));
}

}  // namespace edge
