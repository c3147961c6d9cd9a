#include "kernels/declare.h"

#define EDGE_NAME_OF(isa) #isa
#define EDGE_NAME(isa) EDGE_NAME_OF(isa)

#if defined(__AVX512F__)
#define EDGE_COMMON_ISA avx2
#else
#define EDGE_COMMON_ISA EDGE_ISA
#endif

namespace edge {

namespace EDGE_COMMON_ISA {
#define EDGE_DECLARE(name, Args) void name(const Args& args, const Worker& worker);
EDGE_COMMON_KERNELS(EDGE_DECLARE)
#undef EDGE_DECLARE
}  // namespace EDGE_COMMON_ISA

namespace EDGE_ISA {

namespace {
const Kernels kTable = {EDGE_NAME(EDGE_ISA),
#define EDGE_ENTRY(name, Args) name,
                        EDGE_OWN_KERNELS(EDGE_ENTRY)
#undef EDGE_ENTRY
#define EDGE_ENTRY(name, Args) EDGE_COMMON_ISA::name,
                            EDGE_COMMON_KERNELS(EDGE_ENTRY)
#undef EDGE_ENTRY
};
}  // namespace

const Kernels& table() { return kTable; }

}  // namespace EDGE_ISA
}  // namespace edge
