// edge_runtime._cuda: the device kernels on arrays of torch, CuPy and others. Every argument is
// checked here; the GIL is held, since nothing waits.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <limits>

#include "bindings/device_call.h"

namespace py = pybind11;

namespace edge::cuda {
namespace {

Element element_of(const std::string& dtype) {
  if (dtype == "float32") return Element::float32;
  if (dtype == "float16") return Element::float16;
  if (dtype == "bfloat16") return Element::bfloat16;
  throw py::value_error("dtype must be float32, float16 or bfloat16, got " + dtype);
}

void check_count(std::uint64_t n, std::int64_t k) {
  if (n > static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max())) {
    throw py::value_error("at most 2^31 - 1 elements, got " + std::to_string(n));
  }
  if (k < 1 || static_cast<std::uint64_t>(k) > n) {
    throw py::value_error("k must be in 1.." + std::to_string(n) + ", got " + std::to_string(k));
  }
}

std::uint64_t top_k_bytes(std::int64_t n, std::int64_t k, const std::string& dtype,
                          std::uint32_t tensors) {
  if (n < 1) throw py::value_error("n must be positive, got " + std::to_string(n));
  check_count(static_cast<std::uint64_t>(n), k);
  return top_k_workspace_bytes(static_cast<std::uint64_t>(n), static_cast<std::uint64_t>(k),
                               element_of(dtype), tensors);
}

// Where results go, whatever they are selected from.
struct Outputs {
  py::object indices, values, first_nan, starts;
};

// Names the tensors' numbers in errors.
class Names {
 public:
  const char* operator()(const char* name, std::size_t number, std::size_t count) {
    names_.push_back(count == 1 ? name : std::string(name) + "[" + std::to_string(number) + "]");
    return names_.back().c_str();
  }

 private:
  std::deque<std::string> names_;  // which does not move them
};

std::uint64_t elements_of(const std::vector<SelectedFrom>& tensors) {
  std::uint64_t n = 0;
  for (const SelectedFrom& tensor : tensors) n += tensor.n;
  return n;
}

SelectionCall selection_call(Call& call, const std::vector<SelectedFrom>& tensors,
                             const std::string& dtype, std::int64_t k, const Outputs& out,
                             const py::object& workspace) {
  const std::uint64_t n = elements_of(tensors);
  check_count(n, k);
  SelectionCall it{};
  it.tensors = tensors.data();
  it.count = static_cast<std::uint32_t>(tensors.size());
  it.element = element_of(dtype);
  it.k = static_cast<std::uint32_t>(k);
  it.indices = call.pointer<std::int32_t>(out.indices, "indices", "int32", {k}, true);
  it.values = call.pointer<void>(out.values, "values", dtype.c_str(), {k}, true);
  it.first_nan = call.pointer<std::int32_t>(out.first_nan, "first_nan", "int32", {1}, true);
  if (!out.starts.is_none()) {
    const auto count = static_cast<std::int64_t>(tensors.size()) + 1;
    it.starts = call.pointer<std::int32_t>(out.starts, "starts", "int32", {count}, true);
  }
  const std::uint64_t bytes =
      top_k_workspace_bytes(n, static_cast<std::uint64_t>(k), it.element, it.count);
  it.workspace = call.workspace(workspace, bytes);
  return it;
}

void check_tensors(std::size_t count) {
  constexpr std::size_t kMost = 1U << 20U;
  if (count < 1 || count > kMost) {
    throw py::value_error("there must be 1..2^20 tensors, got " + std::to_string(count));
  }
}

void top_k(const std::vector<py::object>& arrays, std::int64_t k, const py::object& indices,
           const py::object& values, const py::object& first_nan, const py::object& starts,
           const py::object& workspace, std::uintptr_t stream) {
  check_tensors(arrays.size());
  Call call(stream);
  Names names;
  std::vector<std::string> types{"float32", "float16", "bfloat16"};
  std::vector<DeviceArray> held;  // for the length of the call
  std::vector<SelectedFrom> tensors;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    held.push_back(call.array(arrays[i], names("x", i, arrays.size()), types, {-1}, false));
    types = {held.back().dtype};  // the others' too
    tensors.push_back(
        {reinterpret_cast<void*>(held.back().address), nullptr, nullptr, size_of(held.back())});
  }
  const SelectionCall it =
      selection_call(call, tensors, types[0], k, {indices, values, first_nan, starts}, workspace);
  must(top_k_cuda(it, call.stream()), "top_k");
}

void top_k_feedback(const std::vector<py::object>& gradients,
                    const std::vector<py::object>& residuals,
                    const std::vector<py::object>& momenta, float factor, bool nesterov,
                    bool masked, std::int64_t k, const py::object& indices,
                    const py::object& values, const py::object& first_nan, const py::object& starts,
                    const py::object& workspace, std::uintptr_t stream) {
  const std::size_t count = gradients.size();
  check_tensors(count);
  if (residuals.size() != count || (!momenta.empty() && momenta.size() != count)) {
    throw py::value_error("there must be a residual for each of " + std::to_string(count) +
                          " gradients, and momentum for each or none");
  }
  Call call(stream);
  Names names;
  std::vector<SelectedFrom> tensors;
  for (std::size_t i = 0; i < count; ++i) {
    const DeviceArray from =
        call.array(gradients[i], names("gradient", i, count), {"float32"}, {-1}, false);
    SelectedFrom tensor{};
    tensor.n = size_of(from);
    tensor.gradient = reinterpret_cast<const float*>(from.address);
    tensor.x =
        call.pointer<void>(residuals[i], names("residual", i, count), "float32", from.shape, true);
    if (!momenta.empty()) {
      tensor.momentum =
          call.pointer<float>(momenta[i], names("momentum", i, count), "float32", from.shape, true);
    }
    tensors.push_back(tensor);
  }
  const SelectionCall it =
      selection_call(call, tensors, "float32", k, {indices, values, first_nan, starts}, workspace);
  must(top_k_feedback_cuda(it, factor, nesterov, masked, call.stream()), "top_k_feedback");
}

std::uint64_t above_bytes(std::int64_t n, const std::string& dtype) {
  if (n < 1) throw py::value_error("n must be positive, got " + std::to_string(n));
  check_count(static_cast<std::uint64_t>(n), 1);
  return above_workspace_bytes(static_cast<std::uint64_t>(n), element_of(dtype));
}

void above(const py::object& x, const std::string& dtype, std::uint32_t threshold,
           const py::object& indices, const py::object& values, const py::object& count,
           const py::object& first_nan, const py::object& workspace, std::uintptr_t stream) {
  Call call(stream);
  const DeviceArray from = call.array(x, "x", {dtype}, {-1}, false);
  AboveCall it{};
  it.x = reinterpret_cast<const void*>(from.address);
  it.n = size_of(from);
  check_count(it.n, 1);
  it.element = element_of(from.dtype);
  it.threshold = threshold;
  const DeviceArray places = call.array(indices, "indices", {"int32"}, {-1}, true);
  it.room = static_cast<std::uint32_t>(std::min<std::uint64_t>(size_of(places), it.n));
  it.indices = reinterpret_cast<std::int32_t*>(places.address);
  it.values = call.pointer<void>(values, "values", from.dtype.c_str(), places.shape, true);
  it.count = call.pointer<std::int32_t>(count, "count", "int32", {1}, true);
  it.first_nan = call.pointer<std::int32_t>(first_nan, "first_nan", "int32", {1}, true);
  it.workspace = call.workspace(workspace, above_workspace_bytes(it.n, it.element));
  must(above_cuda(it, call.stream()), "above");
}

std::uint64_t extent(const DeviceArray& array, std::size_t axis) {
  return static_cast<std::uint64_t>(array.shape[axis]);
}

std::uint64_t softmax_bytes(std::int64_t batch, std::int64_t width, std::int64_t classes,
                            bool update) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  for (const std::int64_t size : {batch, width, classes}) {
    if (size < 1 || size > kMost)
      throw py::value_error("a size must be in 1..2^31-1, got " + std::to_string(size));
  }
  SoftmaxCall call{};
  call.batch = static_cast<std::uint64_t>(batch);
  call.width = static_cast<std::uint64_t>(width);
  call.count = static_cast<std::uint64_t>(classes);
  float step = 0.0F;
  call.updated = update ? &step : nullptr;
  std::uint64_t bytes = 0;
  must(softmax_workspace_bytes(call, bytes), "softmax_workspace_bytes");
  return bytes;
}

void sampled_softmax(const py::object& features, const py::object& labels, const py::object& rows,
                     const py::object& classes, std::int64_t positives,
                     const py::object& correction, float correction_of_all, float scale,
                     bool own_positives, const py::object& loss, const py::object& d_features,
                     const py::object& d_rows, float lr, const py::object& workspace,
                     std::uintptr_t stream) {
  Call call(stream);
  SoftmaxCall it{};
  const DeviceArray batch = call.array(features, "features", {"float32"}, {-1, -1}, false);
  it.features = reinterpret_cast<const float*>(batch.address);
  const std::int64_t width = batch.shape[1];
  const bool update = d_rows.is_none();
  const DeviceArray table = call.array(rows, "rows", {"float32"}, {-1, width}, update);
  it.rows = reinterpret_cast<const float*>(table.address);
  it.labels = call.pointer<const std::int32_t>(labels, "labels", "int32", {batch.shape[0]}, false);
  std::int64_t count = table.shape[0];
  if (!classes.is_none()) {
    const DeviceArray numbers = call.array(classes, "classes", {"int32"}, {-1}, false);
    it.classes = reinterpret_cast<const std::int32_t*>(numbers.address);
    count = numbers.shape[0];
  }
  if (batch.shape[0] < 1 || width < 1 || count < 1 || table.shape[0] < 1) {
    throw py::value_error("features, rows and classes must not be empty");
  }
  if (positives < 0 || positives > count) {
    throw py::value_error("positives must be in 0.." + std::to_string(count) + ", got " +
                          std::to_string(positives));
  }
  if (!correction.is_none()) {
    it.correction = call.pointer<const float>(correction, "correction", "float32", {count}, false);
  }
  it.batch = extent(batch, 0);
  it.width = extent(batch, 1);
  it.row_count = extent(table, 0);
  it.count = static_cast<std::uint64_t>(count);
  it.positives = classes.is_none() ? it.count : static_cast<std::uint64_t>(positives);
  it.correction_of_all = correction_of_all;
  it.scale = scale;
  it.own_positives = own_positives;
  it.loss = call.pointer<float>(loss, "loss", "float32", {1}, true);
  it.d_features = call.pointer<float>(d_features, "d_features", "float32", batch.shape, true);
  if (update) {
    it.updated = reinterpret_cast<float*>(table.address);
    it.lr = lr;
  } else {
    it.d_rows = call.pointer<float>(d_rows, "d_rows", "float32", {count, width}, true);
  }
  std::uint64_t bytes = 0;
  must(softmax_workspace_bytes(it, bytes), "softmax_workspace_bytes");
  void* const work = call.workspace(workspace, bytes);
  must(softmax_cuda(it, work, call.stream()), "sampled_softmax");
}

void convert(const py::object& x, const py::object& out, std::uintptr_t stream) {
  const std::vector<std::string> types{"float32", "float16", "bfloat16"};
  Call call(stream);
  const DeviceArray from = call.array(x, "x", types, {-1}, false);
  const DeviceArray to = call.array(out, "out", types, from.shape, true);
  if ((from.dtype == "float32") == (to.dtype == "float32")) {
    throw py::type_error(
        "one of x and out must be float32 and the other float16 or bfloat16, got " + from.dtype +
        " and " + to.dtype);
  }
  if (from.dtype == "float32") {
    must(narrow_cuda(reinterpret_cast<const float*>(from.address), element_of(to.dtype),
                     reinterpret_cast<void*>(to.address), size_of(from), call.stream()),
         "convert");
  } else {
    must(widen_cuda(reinterpret_cast<const void*>(from.address), element_of(from.dtype),
                    reinterpret_cast<float*>(to.address), size_of(from), call.stream()),
         "convert");
  }
}

Quantizer quantizer_of(const std::string& rounding, const std::string& norm) {
  if (rounding == "nearest") return Quantizer::nearest;
  if (rounding == "sign") return Quantizer::sign;
  if (rounding != "stochastic") {
    throw py::value_error("rounding must be nearest, stochastic or sign, got " + rounding);
  }
  if (norm != "l2" && norm != "max") throw py::value_error("norm must be l2 or max, got " + norm);
  return norm == "l2" ? Quantizer::stochastic_l2 : Quantizer::stochastic_max;
}

// How many scales n values have.
std::int64_t scales_of(std::uint64_t n, std::int64_t block, bool sign) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (block < 1 || block > kMost || (sign && block % 8 != 0)) {
    throw py::value_error("block must be in 1..2147483647, and for signs a multiple of 8, got " +
                          std::to_string(block));
  }
  if (n > static_cast<std::uint64_t>(kMost)) {
    throw py::value_error("at most 2^31 - 1 values, got " + std::to_string(n));
  }
  return (static_cast<std::int64_t>(n) + block - 1) / block;
}

void* codes_of(Call& call, const py::object& q, std::uint64_t n, bool sign, bool written) {
  const std::int64_t count = static_cast<std::int64_t>(sign ? (n + 7) / 8 : n);
  return call.pointer<void>(q, "q", sign ? "uint8" : "int8", {count}, written);
}

void quantize(const py::object& x, const std::string& rounding, const std::string& norm,
              std::int64_t block, std::int64_t levels, std::uint64_t seed, const py::object& q,
              const py::object& scales, const py::object& first_bad, std::uintptr_t stream) {
  Call call(stream);
  QuantizeCall it{};
  it.quantizer = quantizer_of(rounding, norm);
  const bool sign = it.quantizer == Quantizer::sign;
  if (levels < 1 || levels > 127) {
    throw py::value_error("levels must be in 1..127, got " + std::to_string(levels));
  }
  const DeviceArray from = call.array(x, "x", {"float32"}, {-1}, false);
  it.x = reinterpret_cast<const float*>(from.address);
  it.n = size_of(from);
  const std::int64_t count = scales_of(it.n, block, sign);
  it.block = static_cast<std::uint64_t>(block);
  it.levels = static_cast<float>(levels);
  it.seed = seed;
  it.q = codes_of(call, q, it.n, sign, true);
  it.scales = call.pointer<float>(scales, "scales", "float32", {count}, true);
  it.first_bad = call.pointer<std::int32_t>(first_bad, "first_bad", "int32", {1}, true);
  must(quantize_cuda(it, call.stream()), "quantize");
}

void dequantize(const py::object& q, const py::object& scales, bool sign, std::int64_t block,
                const py::object& x, std::uintptr_t stream) {
  Call call(stream);
  const DeviceArray to = call.array(x, "x", {"float32"}, {-1}, true);
  const std::uint64_t n = size_of(to);
  const std::int64_t count = scales_of(n, block, sign);
  const void* const codes = codes_of(call, q, n, sign, false);
  const auto* const factors =
      call.pointer<const float>(scales, "scales", "float32", {count}, false);
  must(dequantize_cuda(codes, factors, reinterpret_cast<float*>(to.address), n,
                       static_cast<std::uint64_t>(block), sign, call.stream()),
       "dequantize");
}

// Rank and sides of a decomposition.
void check_rank(std::int64_t m, std::int64_t n, std::int64_t rank, std::uint64_t most) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (m < 1 || n < 1 || m > kMost || n > kMost) {
    throw py::value_error("a must have 1..2^31-1 rows and columns, got " + std::to_string(m) +
                          " x " + std::to_string(n));
  }
  const std::int64_t largest = std::min({m, n, static_cast<std::int64_t>(most)});
  if (rank < 1 || rank > largest) {
    throw py::value_error("rank must be in 1.." + std::to_string(largest) + ", got " +
                          std::to_string(rank));
  }
}

std::uint64_t svd_bytes(std::int64_t m, std::int64_t n, std::int64_t rank, bool step) {
  check_rank(m, n, rank, step ? kMostPowerRank : kMostSvdRank);
  std::uint64_t bytes = 0;
  must(svd_workspace_bytes(static_cast<std::uint64_t>(m), static_cast<std::uint64_t>(n),
                           static_cast<std::uint64_t>(rank), step, bytes),
       "svd_workspace_bytes");
  return bytes;
}

void truncated_svd(const py::object& a, std::int64_t rank, double energy, const py::object& warm,
                   std::uint64_t seed, std::int64_t iterations, double tolerance,
                   const py::object& u, const py::object& s, const py::object& vt,
                   const py::object& error, const py::object& used, const py::object& first_bad,
                   const py::object& workspace, std::uintptr_t stream) {
  if (iterations < 0 || iterations > 1000) {
    throw py::value_error("iterations must be in 0..1000, got " + std::to_string(iterations));
  }
  if (!(energy > 0.0 && energy <= 1.0)) {
    throw py::value_error("energy must be in (0, 1], got " + std::to_string(energy));
  }
  Call call(stream);
  SvdCall it{};
  const DeviceArray from = call.array(a, "a", {"float32"}, {-1, -1}, false);
  const std::int64_t m = from.shape[0];
  const std::int64_t n = from.shape[1];
  check_rank(m, n, rank, kMostSvdRank);
  it.a = reinterpret_cast<const float*>(from.address);
  it.m = extent(from, 0);
  it.n = extent(from, 1);
  it.rank = static_cast<std::uint64_t>(rank);
  if (!warm.is_none()) {
    const DeviceArray start = call.array(warm, "warm", {"float32"}, {-1, n}, false);
    it.warm = reinterpret_cast<const float*>(start.address);
    it.warm_rank = extent(start, 0);
  }
  it.seed = seed;
  it.iterations = static_cast<std::uint64_t>(iterations);
  it.tolerance = tolerance;
  it.energy = energy;
  it.u = call.pointer<float>(u, "u", "float32", {m, rank}, true);
  it.s = call.pointer<float>(s, "s", "float32", {rank}, true);
  it.vt = call.pointer<float>(vt, "vt", "float32", {rank, n}, true);
  it.error = call.pointer<float>(error, "error", "float32", {1}, true);
  it.used = call.pointer<std::int32_t>(used, "used", "int32", {1}, true);
  it.first_bad = call.pointer<std::int32_t>(first_bad, "first_bad", "int32", {1}, true);
  void* const work = call.workspace(workspace, svd_bytes(m, n, rank, false));
  must(svd_cuda(it, work, call.stream()), "truncated_svd");
}

void power_step(const py::object& a, const py::object& q, const py::object& p,
                const py::object& next_q, const py::object& first_bad, const py::object& workspace,
                std::uintptr_t stream) {
  Call call(stream);
  PowerCall it{};
  const DeviceArray from = call.array(a, "a", {"float32"}, {-1, -1}, false);
  const std::int64_t m = from.shape[0];
  const std::int64_t n = from.shape[1];
  const DeviceArray start = call.array(q, "q", {"float32"}, {n, -1}, false);
  const std::int64_t rank = start.shape[1];
  check_rank(m, n, rank, kMostPowerRank);
  it.a = reinterpret_cast<const float*>(from.address);
  it.m = extent(from, 0);
  it.n = extent(from, 1);
  it.rank = extent(start, 1);
  it.q = reinterpret_cast<const float*>(start.address);
  it.p = call.pointer<float>(p, "p", "float32", {m, rank}, true);
  it.next_q = call.pointer<float>(next_q, "next_q", "float32", {n, rank}, true);
  it.first_bad = call.pointer<std::int32_t>(first_bad, "first_bad", "int32", {1}, true);
  void* const work = call.workspace(workspace, svd_bytes(m, n, rank, true));
  must(power_step_cuda(it, work, call.stream()), "power_step");
}

// Each device that can be used: name, compute capability, bytes of memory.
py::list devices() {
  int count = 0;
  must(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  py::list out;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp it{};
    must(cudaGetDeviceProperties(&it, device), "cudaGetDeviceProperties");
    py::dict row;
    row["name"] = std::string(it.name);
    row["capability"] = std::to_string(it.major) + "." + std::to_string(it.minor);
    row["memory_bytes"] = static_cast<std::uint64_t>(it.totalGlobalMem);
    out.append(row);
  }
  return out;
}

}  // namespace
}  // namespace edge::cuda

PYBIND11_MODULE(_cuda, m) {
  using namespace edge::cuda;
  m.doc() = "Device kernels on arrays that offer DLPack or __cuda_array_interface__.";
  m.attr("compiled_for") = EDGE_CUDA_ARCHITECTURES;
  m.def("devices", &devices);
  m.def("top_k_workspace_bytes", &top_k_bytes, py::arg("n").noconvert(), py::arg("k").noconvert(),
        py::arg("dtype"), py::arg("tensors").noconvert());
  m.def("top_k", &top_k, py::arg("arrays"), py::arg("k").noconvert(), py::arg("indices"),
        py::arg("values"), py::arg("first_nan"), py::arg("starts"), py::arg("workspace"),
        py::arg("stream"));
  m.def("top_k_feedback", &top_k_feedback, py::arg("gradients"), py::arg("residuals"),
        py::arg("momenta"), py::arg("factor"), py::arg("nesterov"), py::arg("masked"),
        py::arg("k").noconvert(), py::arg("indices"), py::arg("values"), py::arg("first_nan"),
        py::arg("starts"), py::arg("workspace"), py::arg("stream"));
  m.def("above_workspace_bytes", &above_bytes, py::arg("n").noconvert(), py::arg("dtype"));
  m.def("above", &above, py::arg("x"), py::arg("dtype"), py::arg("threshold").noconvert(),
        py::arg("indices"), py::arg("values"), py::arg("count"), py::arg("first_nan"),
        py::arg("workspace"), py::arg("stream"));
  m.def("softmax_workspace_bytes", &softmax_bytes, py::arg("batch").noconvert(),
        py::arg("width").noconvert(), py::arg("classes").noconvert(), py::arg("update"));
  m.def("sampled_softmax", &sampled_softmax, py::arg("features"), py::arg("labels"),
        py::arg("rows"), py::arg("classes"), py::arg("positives").noconvert(),
        py::arg("correction"), py::arg("correction_of_all"), py::arg("scale"),
        py::arg("own_positives"), py::arg("loss"), py::arg("d_features"), py::arg("d_rows"),
        py::arg("lr"), py::arg("workspace"), py::arg("stream"));
  m.def("convert", &convert, py::arg("x"), py::arg("out"), py::arg("stream"));
  m.def("quantize", &quantize, py::arg("x"), py::arg("rounding"), py::arg("norm"),
        py::arg("block").noconvert(), py::arg("levels").noconvert(), py::arg("seed").noconvert(),
        py::arg("q"), py::arg("scales"), py::arg("first_bad"), py::arg("stream"));
  m.def("dequantize", &dequantize, py::arg("q"), py::arg("scales"), py::arg("sign"),
        py::arg("block").noconvert(), py::arg("x"), py::arg("stream"));
  m.def("svd_workspace_bytes", &svd_bytes, py::arg("m").noconvert(), py::arg("n").noconvert(),
        py::arg("rank").noconvert(), py::arg("step"));
  m.def("truncated_svd", &truncated_svd, py::arg("a"), py::arg("rank").noconvert(),
        py::arg("energy"), py::arg("warm"), py::arg("seed").noconvert(),
        py::arg("iterations").noconvert(), py::arg("tolerance"), py::arg("u"), py::arg("s"),
        py::arg("vt"), py::arg("error"), py::arg("used"), py::arg("first_bad"),
        py::arg("workspace"), py::arg("stream"));
  m.def("power_step", &power_step, py::arg("a"), py::arg("q"), py::arg("p"), py::arg("next_q"),
        py::arg("first_bad"), py::arg("workspace"), py::arg("stream"));
}
