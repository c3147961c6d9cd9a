// Arrays in device memory, from whoever made them: DLPack (torch, JAX, CuPy) where offered, or else
// __cuda_array_interface__ (CuPy, Numba). Checked here; nothing is copied or converted.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace edge::cuda {

// dlpack.h, version 0.8: the part that a consumer reads.
struct DlDevice {
  std::int32_t type;
  std::int32_t id;
};
struct DlType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t ndim;
  DlType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // of elements; null: C-contiguous
  std::uint64_t byte_offset;
};
struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};

struct DeviceArray {
  std::uintptr_t address = 0;
  std::vector<std::int64_t> shape;
  std::string dtype;  // as NumPy names it, and "bfloat16"
  std::uint64_t item_bytes = 0;
  bool read_only = false;
  std::uintptr_t ready_on = 0;  // a stream whose work so far must be done first; 0: none
  pybind11::object owner;       // keeps the memory for the call
};

inline std::string described(const DeviceArray& array) {
  std::string text = array.dtype + " (";
  for (const std::int64_t size : array.shape) text += std::to_string(size) + ",";
  return text + ")";
}

inline std::string type_name(char kind, int bits) {
  const std::string size = std::to_string(bits);
  switch (kind) {
    case 'i':
      return "int" + size;
    case 'u':
      return "uint" + size;
    case 'f':
      return "float" + size;
    case 'b':
      return "bfloat" + size;
    default:
      return std::string("a type of kind ") + kind + size;
  }
}

[[noreturn]] inline void not_contiguous(const char* name) {
  throw pybind11::type_error(std::string(name) +
                             " must be C-contiguous; call contiguous() on it first");
}

// Strides in units of `unit` bytes.
inline void require_contiguous(const char* name, const std::vector<std::int64_t>& shape,
                               const std::vector<std::int64_t>& strides, std::int64_t unit) {
  std::int64_t expected = unit;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] > 1 && strides.at(axis) != expected) not_contiguous(name);
    expected *= shape[axis];
  }
}

// `stream` as DLPack counts: the producer orders its work before it, without the host waiting.
inline DeviceArray from_dlpack(const pybind11::object& object, const char* name,
                               std::uintptr_t stream) {
  namespace py = pybind11;
  constexpr std::int32_t kCuda = 2;
  constexpr std::int32_t kManaged = 13;
  const auto device = py::cast<std::pair<int, int>>(object.attr("__dlpack_device__")());
  if (device.first != kCuda && device.first != kManaged) {
    throw py::type_error(std::string(name) +
                         " must be in CUDA memory, but is on DLPack device type " +
                         std::to_string(device.first) + (device.first == 1 ? " (CPU)" : ""));
  }
  const py::object asked = stream == 0 ? py::object(py::int_(1)) : py::object(py::int_(stream));
  py::capsule capsule = object.attr("__dlpack__")(py::arg("stream") = asked);
  if (std::string(capsule.name()) != "dltensor") {
    throw py::type_error(std::string(name) + ": its DLPack capsule was used before");
  }
  auto* managed = capsule.get_pointer<DlManaged>();
  // From here on the tensor is ours to give back.
  capsule.set_name("used_dltensor");
  DeviceArray out;
  out.owner = py::capsule(managed, [](void* pointer) {
    auto* tensor = static_cast<DlManaged*>(pointer);
    if (tensor->deleter != nullptr) tensor->deleter(tensor);
  });
  const DlTensor& tensor = managed->tensor;
  const char kinds[] = {'i', 'u', 'f', '?', 'b'};
  const char kind = tensor.dtype.code < sizeof kinds ? kinds[tensor.dtype.code] : '?';
  out.dtype = type_name(kind, tensor.dtype.bits) + (tensor.dtype.lanes == 1 ? "" : " vectors");
  out.item_bytes = (static_cast<std::uint64_t>(tensor.dtype.bits) * tensor.dtype.lanes + 7) / 8;
  out.address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
  out.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  if (tensor.strides != nullptr) {
    require_contiguous(name, out.shape, {tensor.strides, tensor.strides + tensor.ndim}, 1);
  }
  return out;
}

inline DeviceArray from_interface(const pybind11::object& object, const char* name) {
  namespace py = pybind11;
  const py::dict fields = object.attr("__cuda_array_interface__");
  DeviceArray out;
  out.owner = object;
  out.shape = py::cast<std::vector<std::int64_t>>(fields["shape"]);
  const auto type = py::cast<std::string>(fields["typestr"]);
  if (type.size() < 3 || (type[0] != '<' && type[0] != '|')) {
    throw py::type_error(std::string(name) + ": type " + type + " is not little-endian");
  }
  const int size = std::stoi(type.substr(2));
  out.dtype = type_name(type[1], 8 * size);
  out.item_bytes = static_cast<std::uint64_t>(size);
  const auto data = py::cast<std::pair<std::uintptr_t, bool>>(fields["data"]);
  out.address = data.first;
  out.read_only = data.second;
  if (fields.contains("stream") && !fields["stream"].is_none()) {
    out.ready_on = py::cast<std::uintptr_t>(fields["stream"]);
  }
  if (fields.contains("strides") && !fields["strides"].is_none()) {
    require_contiguous(name, out.shape, py::cast<std::vector<std::int64_t>>(fields["strides"]),
                       size);
  }
  return out;
}

inline DeviceArray device_array(const pybind11::object& object, const char* name,
                                std::uintptr_t stream) {
  if (pybind11::hasattr(object, "__dlpack__")) return from_dlpack(object, name, stream);
  if (pybind11::hasattr(object, "__cuda_array_interface__")) return from_interface(object, name);
  throw pybind11::type_error(
      std::string(name) +
      " must offer __dlpack__ or __cuda_array_interface__ (a torch or CuPy "
      "array), got " +
      pybind11::cast<std::string>(pybind11::str(pybind11::type::of(object))));
}

}  // namespace edge::cuda
