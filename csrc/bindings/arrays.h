// How a kernel's arguments arrive from Python: checked once, never converted, named in the error.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <string>

#include "core/checks.h"
#include "core/workspace.h"

namespace edge {

// A workspace with a latch: two calls at once would share its memory.
struct PyWorkspace : Workspace {
  using Workspace::Workspace;
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

// Holds what has a latch, a workspace above all, for one call.
template <class Latched>
class Held {
 public:
  explicit Held(Latched& latched) : latched_(latched) {
    if (latched_.busy.test_and_set()) {
      throw std::runtime_error(
          "another thread is using this workspace or these sums; give each thread its own");
    }
  }
  ~Held() { latched_.busy.clear(); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  Latched& operator*() const { return latched_; }
  Latched* operator->() const { return &latched_; }

 private:
  Latched& latched_;
};

[[noreturn]] inline void wrong_array(const char* name, const std::string& wanted,
                                     const pybind11::array& array) {
  const auto dtype = pybind11::cast<std::string>(pybind11::str(array.dtype()));
  const auto shape = pybind11::cast<std::string>(pybind11::str(array.attr("shape")));
  throw pybind11::type_error(std::string(name) + " must be " + wanted + ", got " + dtype + " " +
                             shape);
}

// `array` as C-contiguous T of `dimensions` dimensions; TypeError with its name otherwise.
template <class T>
Span<const T> input(const pybind11::array& array, const char* name, pybind11::ssize_t dimensions) {
  const bool fits =
      pybind11::dtype::of<T>().is(array.dtype()) || pybind11::dtype::of<T>().equal(array.dtype());
  const bool dense = (array.flags() & pybind11::array::c_style) != 0;
  if (!fits || !dense || array.ndim() != dimensions) {
    wrong_array(name,
                "a C-contiguous " +
                    pybind11::cast<std::string>(pybind11::str(pybind11::dtype::of<T>())) +
                    " array of " + std::to_string(dimensions) + " dimension(s)",
                array);
  }
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

// The same to be written to.
template <class T>
Span<T> output(pybind11::array& array, const char* name, pybind11::ssize_t dimensions) {
  const Span<const T> read = input<T>(array, name, dimensions);
  if (!array.writeable()) throw pybind11::value_error(std::string(name) + " is read-only");
  return {static_cast<T*>(array.mutable_data()), read.size()};
}

}  // namespace edge
