#include "kernels/declare.h"

#define EDGE_NAME_OF(isa) #isa
#define EDGE_NAME(isa) EDGE_NAME_OF(isa)

namespace edge {
namespace EDGE_ISA {

namespace {
const Kernels kTable = {EDGE_NAME(EDGE_ISA),
#define EDGE_ENTRY(name, Args) name,
                        EDGE_KERNELS(EDGE_ENTRY)
#undef EDGE_ENTRY
};
}  // namespace

const Kernels& table() { return kTable; }

}  // namespace EDGE_ISA
}  // namespace edge
