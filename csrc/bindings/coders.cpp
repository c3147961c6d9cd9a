#include <vector>

#include "algorithms/gaps.h"
#include "algorithms/rans.h"
#include "bindings/arrays.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace edge {
namespace {

// The bytes of any object that holds contiguous ones (bytes, bytearray, memoryview), not copied.
class HeldBytes {
 public:
  explicit HeldBytes(const py::object& object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~HeldBytes() { PyBuffer_Release(&view_); }
  HeldBytes(const HeldBytes&) = delete;
  HeldBytes& operator=(const HeldBytes&) = delete;
  Span<const std::uint8_t> span() const {
    return {static_cast<const std::uint8_t*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_;
};

// New bytes of a known size, to be filled before anybody else sees them.
py::bytes new_bytes(std::uint64_t size) {
  const auto bytes = py::reinterpret_steal<py::bytes>(
      PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!bytes) throw py::error_already_set();
  return bytes;
}

Span<std::uint8_t> span_of(const py::bytes& bytes) {
  return {reinterpret_cast<std::uint8_t*>(PyBytes_AS_STRING(bytes.ptr())),
          static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

py::bytes encode_indices(const py::array& array, Index n) {
  const Span<const std::int32_t> indices = input<std::int32_t>(array, "indices", 1);
  std::vector<std::uint8_t> forms(gap_blocks(indices.size()));
  std::uint64_t size = 0;
  {
    const py::gil_scoped_release release;
    size = plan_gaps(indices, n, {forms.data(), forms.size()});
  }
  py::bytes out = new_bytes(size);
  const Span<std::uint8_t> span = span_of(out);
  const py::gil_scoped_release release;
  write_gaps(indices, {forms.data(), forms.size()}, span);
  return out;
}

py::array_t<std::int32_t> decode_indices(const py::object& data, Index n, Index max_count) {
  const HeldBytes stream(data);
  py::array_t<std::int32_t> indices(count_gaps(stream.span(), n, max_count));
  const Span<std::int32_t> span(indices.mutable_data(), static_cast<std::size_t>(indices.size()));
  const py::gil_scoped_release release;
  read_gaps(stream.span(), n, span);
  return indices;
}

RansForm form_of(int state_bits, int ways) {
  if (state_bits != 32 && state_bits != 64) {
    throw py::value_error("state_bits must be 32 or 64, got " + std::to_string(state_bits));
  }
  return {state_bits == 64, ways};
}

py::bytes encode_symbols(const py::array& symbol_array, const RansTables& tables,
                         const py::array& index_array, int state_bits, int ways) {
  const auto symbols = input<std::int32_t>(symbol_array, "symbols", 1);
  const auto indexes = input<std::int32_t>(index_array, "indexes", 1);
  const RansForm form = form_of(state_bits, ways);
  RansStream stream;
  {
    const py::gil_scoped_release release;
    stream = rans_encode(tables, form, symbols, indexes);
  }
  return py::bytes(reinterpret_cast<const char*>(stream.buffer.data()) + stream.begin,
                   stream.buffer.size() - stream.begin);
}

py::array_t<std::int32_t> decode_symbols(const py::object& data, const RansTables& tables,
                                         const py::array& index_array, int state_bits, int ways) {
  const HeldBytes stream(data);
  const auto indexes = input<std::int32_t>(index_array, "indexes", 1);
  const RansForm form = form_of(state_bits, ways);
  py::array_t<std::int32_t> symbols(static_cast<py::ssize_t>(indexes.size()));
  const Span<std::int32_t> span(symbols.mutable_data(), indexes.size());
  const py::gil_scoped_release release;
  rans_decode(tables, form, stream.span(), indexes, span);
  return symbols;
}

// StreamError(rule, message), as PlanError.
PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<py::object> stream_error;

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const StreamError& error) {
    const py::tuple args = py::make_tuple(error.rule(), error.what());
    PyErr_SetObject(stream_error.get_stored().ptr(), args.ptr());
  }
}

}  // namespace

void bind_coders(py::module_& m) {
  stream_error.call_once_and_store_result([] {
    return py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
        "edge_runtime._core.StreamError",
        "A coded stream broke a rule of its format; args are (rule, message).", PyExc_ValueError,
        nullptr));
  });
  m.attr("StreamError") = stream_error.get_stored();
  py::register_exception_translator(translate);

  m.def("encode_indices", &encode_indices, py::arg("indices").noconvert(), py::arg("n"));
  m.def("decode_indices", &decode_indices, py::arg("data"), py::arg("n"), py::arg("max_count"));

  py::class_<RansTables>(m, "RansTables")
      .def(py::init([](const py::array& cdfs, const py::array& lengths, const py::array& offsets) {
             const auto counts = input<std::int32_t>(cdfs, "cdfs", 2);
             return RansTables(counts, cdfs.shape(1), input<std::int32_t>(lengths, "lengths", 1),
                               input<std::int32_t>(offsets, "offsets", 1));
           }),
           py::arg("cdfs").noconvert(), py::arg("lengths").noconvert(),
           py::arg("offsets").noconvert())
      .def_property_readonly("rows", &RansTables::rows);
  m.def("rans_encode", &encode_symbols, py::arg("symbols").noconvert(), py::arg("tables"),
        py::arg("indexes").noconvert(), py::arg("state_bits"), py::arg("ways"));
  m.def("rans_decode", &decode_symbols, py::arg("data"), py::arg("tables"),
        py::arg("indexes").noconvert(), py::arg("state_bits"), py::arg("ways"));
}

}  // namespace edge
