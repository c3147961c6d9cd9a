#include <pybind11/stl.h>

#include <optional>

#include "algorithms/svd.h"
#include "bindings/arrays.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace edge {

namespace {

Index side(const py::array& array, int axis) { return static_cast<Index>(array.shape(axis)); }

// a (m, n): refused where empty, or larger than indices and padding reach.
Span<const float> matrix(const py::array& array, const char* name) {
  const Span<const float> values = input<float>(array, name, 2);
  if (values.size() == 0 || values.size() > (std::size_t{1} << 40)) {
    throw py::value_error(std::string(name) + " must have 1 to 2^40 elements, got shape " +
                          py::cast<std::string>(py::str(array.attr("shape"))));
  }
  return values;
}

void check_range(const char* name, Index value, Index most) {
  if (value >= 1 && value <= most) return;
  throw py::value_error(std::string(name) + " must be in 1.." + std::to_string(most) + ", got " +
                        std::to_string(value));
}

// The first `columns` columns of (rows, step) as an array.
py::array_t<float> columns_of(const float* from, Index rows, Index step, Index columns) {
  py::array_t<float> array({rows, columns});
  float* to = array.mutable_data();
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) to[i * columns + j] = from[i * step + j];
  return array;
}

// The same, transposed.
py::array_t<float> rows_of(const float* from, Index rows, Index step, Index columns) {
  py::array_t<float> array({columns, rows});
  float* to = array.mutable_data();
  for (Index j = 0; j < columns; ++j)
    for (Index i = 0; i < rows; ++i) to[j * rows + i] = from[i * step + j];
  return array;
}

py::tuple svd(PyWorkspace& workspace, const py::array& a, Index rank, double energy,
              const std::optional<py::array>& warm, std::uint64_t seed, double tolerance,
              Index iterations) {
  SvdArgs args;
  args.a = matrix(a, "a").data();
  args.m = side(a, 0);
  args.n = side(a, 1);
  args.rank = rank;
  args.energy = energy;
  args.seed = seed;
  args.tolerance = tolerance;
  args.iterations = iterations;
  check_range("rank", rank, args.m < args.n ? args.m : args.n);
  if (!(energy >= 0 && energy <= 1))
    throw py::value_error("energy must be in (0, 1], got " + std::to_string(energy));
  if (!(tolerance > 0))
    throw py::value_error("tolerance must be positive, got " + std::to_string(tolerance));
  check_range("iterations", iterations, 1000);
  if (warm) {
    args.warm = matrix(*warm, "warm").data();
    args.warm_rank = side(*warm, 0);
    if (side(*warm, 1) != args.n) {
      throw py::value_error("warm must have a column for each of the " + std::to_string(args.n) +
                            " columns of a, got " + std::to_string(side(*warm, 1)));
    }
  }
  Held held(workspace);
  Svd it;
  {
    py::gil_scoped_release release;
    it = truncated_svd(*held, args);
  }
  py::array_t<float> s(it.rank);
  for (Index i = 0; i < it.rank; ++i) s.mutable_data()[i] = static_cast<float>(it.s[i] * it.scale);
  return py::make_tuple(columns_of(it.u, args.m, it.u_step, it.rank), s,
                        rows_of(it.v, args.n, it.v_step, it.rank), it.error, it.passes);
}

py::tuple step(PyWorkspace& workspace, const py::array& a, const py::array& q, std::uint64_t seed) {
  PowerArgs args;
  args.a = matrix(a, "a").data();
  args.q = matrix(q, "q").data();
  args.m = side(a, 0);
  args.n = side(a, 1);
  args.rank = side(q, 1);
  args.seed = seed;
  if (side(q, 0) != args.n) {
    throw py::value_error("q must have a row for each of the " + std::to_string(args.n) +
                          " columns of a, got " + std::to_string(side(q, 0)));
  }
  check_range("the columns of q", args.rank, args.m < args.n ? args.m : args.n);
  Held held(workspace);
  PowerFactors it{};
  {
    py::gil_scoped_release release;
    it = power_step(*held, args);
  }
  return py::make_tuple(columns_of(it.p, args.m, it.step, args.rank),
                        columns_of(it.q, args.n, it.step, args.rank));
}

}  // namespace

void bind_low_rank(py::module_& m) {
  m.def("truncated_svd", &svd, py::arg("workspace"), py::arg("a"), py::arg("rank"),
        py::arg("energy"), py::arg("warm").none(true), py::arg("seed"), py::arg("tolerance"),
        py::arg("iterations"), "(u, s, vt, error, passes); see edge_runtime.kernels.low_rank.");
  m.def("power_step", &step, py::arg("workspace"), py::arg("a"), py::arg("q"), py::arg("seed"),
        "(p, q); see edge_runtime.kernels.low_rank.");
}

}  // namespace edge
