#include "bindings/arrays.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace edge {

void bind_workspace(py::module_& m) {
  py::class_<PyWorkspace>(m, "Workspace",
                          "Instruction set, threads and memory of kernels outside plans.")
      .def(py::init<int, const std::string&>(), py::arg("threads").noconvert() = 1,
           py::arg("isa") = "auto")
      .def(
          "release", [](PyWorkspace& it) { Held(it)->release(); },
          "Gives the memory back to the system.")
      .def_property_readonly("held_bytes", &Workspace::held_bytes)
      .def_property_readonly("peak_bytes", &Workspace::peak_bytes)
      .def_property_readonly("threads", &Workspace::threads)
      .def_property_readonly("isa", [](const PyWorkspace& it) { return it.kernels().isa; });
}

}  // namespace edge
