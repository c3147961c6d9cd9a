// Which instruction sets this build holds kernels for, and which of them this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace edge {

// Kernel tables that can run here, slowest first; never empty.
std::vector<const Kernels*> available_kernels();

// "auto" takes the environment variable EDGE_ISA where it is set, else the fastest. Throws
// std::invalid_argument with the list of what is available when the wish cannot be met.
const Kernels& choose_kernels(const std::string& isa);

}  // namespace edge
