// One call of a device kernel from Python: its arrays, checked against each other and the device.
#pragma once

#include <stdexcept>

#include "bindings/device_arrays.h"
#include "cuda/api.h"

namespace edge::cuda {

namespace py = pybind11;

// A driver call that failed, by name.
inline void must(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // a later call must not report this one
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(code) + ": " +
                           cudaGetErrorString(code));
}

inline std::uint64_t size_of(const DeviceArray& array) {
  std::uint64_t size = 1;
  for (const std::int64_t extent : array.shape) {
    if (extent < 0 || __builtin_mul_overflow(size, static_cast<std::uint64_t>(extent), &size)) {
      throw py::value_error("a shape does not fit 64 bits: " + described(array));
    }
  }
  return size;
}

inline std::string wanted_as(const std::string& types, const std::vector<std::int64_t>& shape) {
  DeviceArray array;
  array.dtype = types;
  array.shape = shape;
  return described(array);
}

// Work queued on `stream` from here on follows what is on `before` now. The host does not wait.
inline void follow(cudaStream_t stream, cudaStream_t before) {
  cudaEvent_t event = nullptr;
  must(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  const cudaError_t recorded = cudaEventRecord(event, before);
  const cudaError_t waits =
      recorded == cudaSuccess ? cudaStreamWaitEvent(stream, event, 0) : recorded;
  cudaEventDestroy(event);  // once it has happened
  must(waits, "cudaStreamWaitEvent");
}

// The arrays of one call: checked as they are named, all on one device, which is current until the
// end.
class Call {
 public:
  explicit Call(std::uintptr_t stream) : stream_(stream) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    if (before_ >= 0) cudaSetDevice(before_);
  }

  cudaStream_t stream() const { return reinterpret_cast<cudaStream_t>(stream_); }

  // Of one of the types `wanted` and of this shape; -1: any extent.
  DeviceArray array(const py::object& object, const char* name,
                    const std::vector<std::string>& wanted, const std::vector<std::int64_t>& shape,
                    bool written) {
    DeviceArray it = device_array(object, name, stream_);
    bool fits = it.shape.size() == shape.size();
    for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
      fits = shape[axis] < 0 || shape[axis] == it.shape[axis];
    }
    bool typed = false;
    std::string types;
    for (const std::string& type : wanted) {
      typed = typed || type == it.dtype;
      types += (types.empty() ? "" : " or ") + type;
    }
    if (!fits || !typed) {
      throw py::type_error(std::string(name) + " must be " + wanted_as(types, shape) +
                           " (-1: any), got " + described(it));
    }
    if (written && it.read_only) throw py::value_error(std::string(name) + " is read-only");
    if (size_of(it) > 0) {
      place(it, name);
      keep_apart({it.address, it.address + size_of(it) * it.item_bytes, written, name});
      if (it.ready_on != 0 && it.ready_on != stream_) {
        follow(stream(), reinterpret_cast<cudaStream_t>(it.ready_on));
      }
    }
    return it;
  }
  template <class T>
  T* pointer(const py::object& object, const char* name, const char* type,
             const std::vector<std::int64_t>& shape, bool written) {
    held_.push_back(array(object, name, {type}, shape, written));
    return reinterpret_cast<T*>(held_.back().address);
  }
  void* workspace(const py::object& object, std::uint64_t bytes) {
    constexpr std::uintptr_t kAligned = 256;
    held_.push_back(array(object, "workspace", {"uint8"}, {-1}, true));
    const DeviceArray& it = held_.back();
    if (size_of(it) < bytes) {
      throw py::value_error("workspace must hold at least " + std::to_string(bytes) +
                            " bytes, got " + std::to_string(size_of(it)));
    }
    if (it.address % kAligned != 0)
      throw py::value_error("workspace must start at a multiple of 256 bytes");
    return reinterpret_cast<void*>(it.address);
  }

 private:
  struct Range {
    std::uintptr_t begin;
    std::uintptr_t end;
    bool written;
    const char* name;
  };

  void keep_apart(const Range& range) {
    for (const Range& other : ranges_) {
      const bool apart = range.end <= other.begin || other.end <= range.begin;
      if (!apart && (range.written || other.written)) {
        throw py::value_error(std::string(range.name) + " shares memory with " + other.name);
      }
    }
    ranges_.push_back(range);
  }

  void place(const DeviceArray& it, const char* name) {
    cudaPointerAttributes where{};
    must(cudaPointerGetAttributes(&where, reinterpret_cast<const void*>(it.address)),
         "cudaPointerGetAttributes");
    if (where.type != cudaMemoryTypeDevice && where.type != cudaMemoryTypeManaged) {
      throw py::value_error(std::string(name) + " does not point to device memory");
    }
    if (before_ < 0) {
      must(cudaGetDevice(&before_), "cudaGetDevice");
      must(cudaSetDevice(where.device), "cudaSetDevice");
      device_ = where.device;
    }
    if (where.device != device_) {
      throw py::value_error(std::string(name) + " is on device " + std::to_string(where.device) +
                            ", the arrays before it on device " + std::to_string(device_));
    }
  }

  std::uintptr_t stream_;
  int before_ = -1;
  int device_ = -1;
  std::vector<DeviceArray> held_;
  std::vector<Range> ranges_;
};

}  // namespace edge::cuda
