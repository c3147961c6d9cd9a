#include "algorithms/fold.h"

#include <pybind11/stl.h>

#include <cstring>

#include "bindings/arrays.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace edge {
namespace {

// An update and the arrays it looks into, of which nobody must change the contents.
struct PyUpdate {
  std::vector<py::object> held;
  CodedUpdate update;
};

// A vector of T; a view into a file may begin at an odd address, which no kernel takes.
template <class T>
Span<const T> aligned(py::array& array, const char* name) {
  const auto span = input<T>(array, name, 1);
  if (reinterpret_cast<std::uintptr_t>(span.data()) % alignof(T) == 0) return span;
  py::array_t<T> copy(static_cast<py::ssize_t>(span.size()));
  std::memcpy(copy.mutable_data(), span.data(), span.size() * sizeof(T));
  array = copy;
  return {copy.data(), span.size()};
}

struct Values {
  Coding coding;
  const void* data;
  std::size_t count;
};

Values values_of(py::array& array) {
  const py::dtype dtype = array.dtype();
  if (dtype.equal(py::dtype::of<std::int8_t>())) {
    const auto span = aligned<std::int8_t>(array, "values");
    return {Coding::int8, span.data(), span.size()};
  }
  if (dtype.equal(py::dtype::of<std::uint16_t>())) {
    const auto span = aligned<std::uint16_t>(array, "values");
    return {Coding::bfloat16, span.data(), span.size()};
  }
  if (dtype.equal(py::dtype("e"))) {
    py::array bits = array.attr("view")(py::dtype::of<std::uint16_t>());
    const auto span = aligned<std::uint16_t>(bits, "values");
    array = bits;
    return {Coding::float16, span.data(), span.size()};
  }
  const auto span = aligned<float>(array, "values");
  return {Coding::float32, span.data(), span.size()};
}

// (begin, values, places, scales, block)
CodedPiece piece_of(const py::tuple& tuple, std::vector<py::object>& held) {
  CodedPiece piece;
  piece.begin = tuple[0].cast<Index>();
  auto values = tuple[1].cast<py::array>();
  const Values view = values_of(values);
  held.push_back(values);
  piece.coding = view.coding;
  piece.values = view.data;
  piece.count = static_cast<Index>(view.count);
  if (!tuple[2].is_none()) {
    auto array = tuple[2].cast<py::array>();
    const auto places = aligned<std::int32_t>(array, "places");
    held.push_back(array);
    if (places.size() != view.count) throw py::value_error("values and places differ in length");
    piece.places = places.data();
  }
  if (piece.coding != Coding::int8) return piece;
  piece.block = tuple[4].cast<Index>();
  if (piece.block < 1) throw py::value_error("block must be at least 1");
  auto array = tuple[3].cast<py::array>();
  const auto scales = aligned<float>(array, "scales");
  held.push_back(array);
  const Index blocks = piece.count / piece.block + (piece.count % piece.block != 0 ? 1 : 0);
  if (static_cast<Index>(scales.size()) != blocks) {
    throw py::value_error(std::to_string(piece.count) + " values in blocks of " +
                          std::to_string(piece.block) + " have " + std::to_string(blocks) +
                          " scales, got " + std::to_string(scales.size()));
  }
  piece.scales = scales.data();
  return piece;
}

std::unique_ptr<PyUpdate> coded_update(PyWorkspace& workspace, const py::list& list, Index total) {
  if (total < 0) throw py::value_error("total must not be negative");
  std::vector<py::object> held;
  std::vector<CodedPiece> pieces;
  for (const py::handle each : list) {
    pieces.push_back(piece_of(each.cast<py::tuple>(), held));
  }
  const Held latch(workspace);
  const auto look = [&] {
    const py::gil_scoped_release release;
    return CodedUpdate(*latch, std::move(pieces), total);
  };
  return std::unique_ptr<PyUpdate>(new PyUpdate{std::move(held), look()});
}

// Sums with a latch: two adding threads would lose terms.
struct PyAccumulator : Accumulator {
  using Accumulator::Accumulator;
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

void add(PyAccumulator& sums, PyWorkspace& workspace, const PyUpdate& update,
         const py::array& weights) {
  const auto factors = input<double>(weights, "weights", 1);
  const Held held(workspace);
  const Held alone(sums);
  const py::gil_scoped_release release;
  alone->add(*held, update.update, factors);
}

py::array_t<double> sums_of(PyAccumulator& sums, Index tensor) {
  if (tensor < 0 || tensor >= sums.tensors()) throw py::index_error("no such tensor");
  py::array_t<double> out(sums.size(tensor));
  const Span<double> span(out.mutable_data(), static_cast<std::size_t>(out.size()));
  const Held alone(sums);
  const py::gil_scoped_release release;
  alone->sums(tensor, span);
  return out;
}

}  // namespace

void bind_fold(py::module_& m) {
  py::class_<PyUpdate>(m, "CodedUpdate", "An update as it came, looked through once.")
      .def(py::init(&coded_update), py::arg("workspace"), py::arg("pieces"), py::arg("total"))
      .def_property_readonly("first_bad", [](const PyUpdate& it) { return it.update.first_bad(); })
      .def_property_readonly("peak", [](const PyUpdate& it) { return it.update.peak(); })
      .def_property_readonly("total", [](const PyUpdate& it) { return it.update.total(); });
  py::class_<PyAccumulator>(m, "Accumulator", "Weighted sums that no order of updates changes.")
      .def(py::init<const std::vector<Index>&>(), py::arg("sizes"))
      .def("add", &add, py::arg("workspace"), py::arg("update"), py::arg("weights").noconvert())
      .def("sums", &sums_of, py::arg("tensor"))
      .def_property_readonly("terms", &Accumulator::terms)
      .def_property_readonly("bytes", &Accumulator::bytes);
}

}  // namespace edge
