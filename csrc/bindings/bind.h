// The parts of edge_runtime._core besides plans, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace edge {

void bind_selection(pybind11::module_& m);
void bind_low_rank(pybind11::module_& m);
void bind_fold(pybind11::module_& m);
void bind_sampled_softmax(pybind11::module_& m);
void bind_coders(pybind11::module_& m);
void bind_quantizers(pybind11::module_& m);
void bind_workspace(pybind11::module_& m);

}  // namespace edge
