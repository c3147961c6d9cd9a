// The kernels of the instruction set this file is being compiled for, as one file sees another's.
#pragma once

#include "kernels/kernels.h"

#ifndef EDGE_ISA
#error "kernels are compiled with -DEDGE_ISA=<namespace>; see CMakeLists.txt"
#endif

namespace edge {
namespace EDGE_ISA {

#define EDGE_DECLARE(name, Args) void name(const Args& args, const Worker& worker);
EDGE_KERNELS(EDGE_DECLARE)
#undef EDGE_DECLARE

}  // namespace EDGE_ISA
}  // namespace edge
