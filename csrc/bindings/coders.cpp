#include <vector>

#include "algorithms/gaps.h"
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
  std::vector<std::uint8_t> forms((indices.size() + kGapBlock - 1) / kGapBlock);
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
}

}  // namespace edge
