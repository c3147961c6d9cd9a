#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "algorithms/select.h"
#include "bindings/arrays.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace edge {

namespace {

constexpr Index kMostElements = 0x7FFFFFFF;  // indices are int32

struct Bytes {
  const void* begin;
  const void* end;
  bool written;
};

// Refuses memory that is written and is also something else.
void refuse_overlap(std::vector<Bytes> all) {
  std::sort(all.begin(), all.end(), [](const Bytes& a, const Bytes& b) {
    return std::less<const void*>()(a.begin, b.begin);
  });
  const void *any = nullptr, *written = nullptr;  // the furthest end so far
  for (const Bytes& bytes : all) {
    const std::less<const void*> before;
    if (bytes.begin == bytes.end) continue;
    if (before(bytes.begin, bytes.written ? any : written)) {
      throw py::value_error("what is updated in place must not share memory with another operand");
    }
    if (before(any, bytes.end)) any = bytes.end;
    if (bytes.written && before(written, bytes.end)) written = bytes.end;
  }
}

template <class T>
void add_read(const py::array& x, SelectProblem& problem) {
  const Span<const T> data = input<T>(x, "x", x.ndim());
  problem.tensors.push_back({data.data(), nullptr, nullptr, static_cast<Index>(data.size())});
}

// Throws std::invalid_argument for more elements than indices reach.
Index total_of(const SelectProblem& problem) {
  Index total = 0;
  for (const SelectTensor& tensor : problem.tensors) total += tensor.count;
  if (total > kMostElements) {
    throw std::invalid_argument("at most 2147483647 elements can be indexed by int32, got " +
                                std::to_string(total));
  }
  return total;
}

void check_k(Index k, const SelectProblem& problem) {
  const Index total = total_of(problem);
  if (k < 1 || k > total) {
    throw std::invalid_argument("k must be in 1.." + std::to_string(total) +
                                ", the number of elements, got " + std::to_string(k));
  }
}

SelectProblem reading(const std::vector<py::array>& xs, std::uint32_t infinity) {
  SelectProblem problem;
  problem.infinity = infinity;
  const bool halves = !xs.empty() && xs[0].itemsize() == 2;
  problem.kind = halves ? SelectKind::bits16 : SelectKind::float32;
  for (const py::array& x : xs)
    halves ? add_read<std::uint16_t>(x, problem) : add_read<float>(x, problem);
  return problem;
}

// The state of tensor t: as large as its gradient.
float* state_of(std::vector<py::array>& states, std::size_t t, const py::array& gradient,
                const char* name, std::vector<Bytes>& bytes) {
  const Span<float> state = output<float>(states[t], name, states[t].ndim());
  if (!std::equal(states[t].shape(), states[t].shape() + states[t].ndim(), gradient.shape(),
                  gradient.shape() + gradient.ndim())) {
    throw std::invalid_argument(std::string(name) + " " + std::to_string(t) + " has shape " +
                                py::cast<std::string>(py::str(states[t].attr("shape"))) +
                                ", its gradient " +
                                py::cast<std::string>(py::str(gradient.attr("shape"))));
  }
  bytes.push_back({state.begin(), state.end(), true});
  return state.data();
}

void check_length(std::size_t states, std::size_t gradients, const char* name) {
  if (states == gradients) return;
  throw std::invalid_argument("there are " + std::to_string(gradients) + " gradients and " +
                              std::to_string(states) + " " + name);
}

// `momenta` is empty where there are none.
SelectProblem accumulating(const std::vector<py::array>& gradients,
                           std::vector<py::array>& residuals, std::vector<py::array>& momenta) {
  SelectProblem problem;
  std::vector<Bytes> bytes;
  problem.kind = SelectKind::residual;
  check_length(residuals.size(), gradients.size(), "residuals");
  for (std::size_t t = 0; t < gradients.size(); ++t) {
    const Span<const float> g = input<float>(gradients[t], "gradient", gradients[t].ndim());
    bytes.push_back({g.begin(), g.end(), false});
    SelectTensor tensor{g.data(), nullptr, nullptr, static_cast<Index>(g.size())};
    tensor.residual = state_of(residuals, t, gradients[t], "residual", bytes);
    if (!momenta.empty()) tensor.momentum = state_of(momenta, t, gradients[t], "momentum", bytes);
    problem.tensors.push_back(tensor);
  }
  refuse_overlap(std::move(bytes));
  return problem;
}

// (indices, values, least key selected) or None where there is a NaN; `find` makes the selection.
template <class Find>
py::object found(PyWorkspace& workspace, const SelectProblem& problem, const Find& find) {
  const bool halves = problem.kind == SelectKind::bits16;
  const Held held(workspace);
  std::optional<Selection> selection;
  {
    const py::gil_scoped_release release;
    selection.emplace(*held, problem);
    find(*selection);
  }
  py::array_t<std::int32_t> indices(selection->count());
  py::array values = halves ? py::array(py::array_t<std::uint16_t>(selection->count()))
                            : py::array(py::array_t<float>(selection->count()));
  std::int32_t* index = indices.mutable_data();
  void* data = values.mutable_data();
  bool numbers = false;
  {
    const py::gil_scoped_release release;
    numbers = selection->emit(index, data);
  }
  if (!numbers) return py::none();
  return py::make_tuple(indices, values, selection->threshold());
}

py::object top_k(PyWorkspace& workspace, const std::vector<py::array>& xs, std::uint32_t infinity,
                 Index k) {
  const SelectProblem problem = reading(xs, infinity);
  check_k(k, problem);
  return found(workspace, problem, [&](Selection& selection) { selection.top_k(k); });
}

py::object top_k_residual(PyWorkspace& workspace, const std::vector<py::array>& gradients,
                          std::vector<py::array> residuals, Index k) {
  std::vector<py::array> none;
  const SelectProblem problem = accumulating(gradients, residuals, none);
  check_k(k, problem);
  return found(workspace, problem, [&](Selection& selection) { selection.top_k(k); });
}

py::object dgc(PyWorkspace& workspace, const std::vector<py::array>& gradients,
               std::vector<py::array> momenta, std::vector<py::array> residuals, Index k,
               float momentum_factor, bool nesterov, bool masking) {
  check_length(momenta.size(), gradients.size(), "momenta");
  SelectProblem problem = accumulating(gradients, residuals, momenta);
  problem.kind = nesterov ? SelectKind::nesterov : SelectKind::dgc;
  problem.factor = momentum_factor;
  problem.clear_momentum = masking;
  check_k(k, problem);
  return found(workspace, problem, [&](Selection& selection) { selection.top_k(k); });
}

py::object above(PyWorkspace& workspace, const py::array& x, std::uint32_t infinity,
                 std::uint32_t key) {
  const SelectProblem problem = reading({x}, infinity);
  total_of(problem);
  return found(workspace, problem, [&](Selection& selection) { selection.above(key); });
}

py::object sampled(PyWorkspace& workspace, const py::array& x, std::uint32_t infinity, Index k,
                   std::uint64_t seed, Index sample, Index least, Index most, Index attempts) {
  const SelectProblem problem = reading({x}, infinity);
  check_k(k, problem);
  if (sample < 1 || sample > x.size() || least > k || most < k || attempts < 1) {
    throw std::invalid_argument(
        "the sample must be in 1..the number of elements, k in least..most, "
        "attempts at least 1");
  }
  const SampledLaw law{seed, sample, least, most, attempts};
  return found(workspace, problem, [&](Selection& selection) { selection.sampled(k, law); });
}

}  // namespace

void bind_selection(py::module_& m) {
  m.def("top_k", &top_k, py::arg("workspace"), py::arg("xs"), py::arg("infinity"), py::arg("k"));
  m.def("top_k_residual", &top_k_residual, py::arg("workspace"), py::arg("gradients"),
        py::arg("residuals"), py::arg("k"));
  m.def("dgc", &dgc, py::arg("workspace"), py::arg("gradients"), py::arg("momenta"),
        py::arg("residuals"), py::arg("k"), py::arg("momentum_factor"), py::arg("nesterov"),
        py::arg("masking"));
  m.def("above", &above, py::arg("workspace"), py::arg("x"), py::arg("infinity"), py::arg("key"));
  m.def("sampled", &sampled, py::arg("workspace"), py::arg("x"), py::arg("infinity"), py::arg("k"),
        py::arg("seed"), py::arg("sample"), py::arg("least"), py::arg("most"), py::arg("attempts"));
}

}  // namespace edge
