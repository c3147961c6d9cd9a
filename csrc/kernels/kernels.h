// The table of kernels of one instruction set. csrc/kernels/*.cpp is compiled once per instruction
// set into its own namespace (EDGE_ISA); nothing else of such a file is visible outside, because an
// inline function of the standard library compiled for AVX and merged by the linker would crash an
// older machine.
#pragma once

#include "kernels/adamw.h"
#include "kernels/binary.h"
#include "kernels/conv.h"
#include "kernels/elementwise.h"
#include "kernels/fold.h"
#include "kernels/gemm.h"
#include "kernels/gemm_sgd.h"
#include "kernels/gram.h"
#include "kernels/indexing.h"
#include "kernels/map.h"
#include "kernels/matmul.h"
#include "kernels/minmax.h"
#include "kernels/narrow.h"
#include "kernels/pool.h"
#include "kernels/quantize.h"
#include "kernels/random.h"
#include "kernels/reduce.h"
#include "kernels/sampled_softmax.h"
#include "kernels/select.h"
#include "kernels/sgd.h"
#include "kernels/softmax_xent.h"
#include "kernels/symmetric.h"
#include "kernels/transpose.h"
#include "kernels/unary.h"

namespace edge {

// Name and arguments of every kernel: the one list that declarations and tables are made of. The
// common ones make no training step faster with 512 bits than with 256: they are not compiled for
// AVX-512, whose table takes AVX2's.
#define EDGE_COMMON_KERNELS(X)          \
  X(softmax_xent, SoftmaxXentArgs)      \
  X(softmax_xent_grad, SoftmaxXentArgs) \
  X(binary, BroadcastArgs)              \
  X(where, BroadcastArgs)               \
  X(minmax, MinmaxArgs)                 \
  X(argminmax, ArgminmaxArgs)           \
  X(strided_copy, StridedCopyArgs)      \
  X(gather, GatherArgs)                 \
  X(scatter_add, GatherArgs)            \
  X(cast, CastArgs)                     \
  X(cumsum, CumsumArgs)                 \
  X(topk, TopkArgs)
#define EDGE_OWN_KERNELS(X)                \
  X(gemm, GemmArgs)                        \
  X(conv, ConvArgs)                        \
  X(conv_grad_x, ConvArgs)                 \
  X(conv_grad_w, ConvArgs)                 \
  X(relu, UnaryArgs)                       \
  X(relu_grad, UnaryArgs)                  \
  X(maxpool, PoolArgs)                     \
  X(maxpool_grad, PoolArgs)                \
  X(avgpool, PoolArgs)                     \
  X(avgpool_grad, PoolArgs)                \
  X(add, BinaryArgs)                       \
  X(sub, BinaryArgs)                       \
  X(mul, BinaryArgs)                       \
  X(reduce_sum, ReduceArgs)                \
  X(transpose, TransposeArgs)              \
  X(sgd, SgdArgs)                          \
  X(copy, CopyArgs)                        \
  X(unary, MapArgs)                        \
  X(matmul, MatmulArgs)                    \
  X(adamw, AdamwArgs)                      \
  X(blend, BlendArgs)                      \
  X(map, MapProgram)                       \
  X(random, RandomArgs)                    \
  X(select_sample, SelectSampleArgs)       \
  X(select_filter, SelectFilterArgs)       \
  X(select_below, SelectBelowArgs)         \
  X(select_count, SelectCountArgs)         \
  X(select_histogram, SelectHistogramArgs) \
  X(gemm_sgd, GemmSgdArgs)                 \
  X(convert_half, ConvertArgs)             \
  X(quantize, QuantizeArgs)                \
  X(dequantize, DequantizeArgs)            \
  X(fold, FoldArgs)                        \
  X(peak, PeakArgs)                        \
  X(narrow, NarrowArgs)                    \
  X(gram, GramArgs)                        \
  X(square_sums, SquareSumsArgs)           \
  X(cholesky, CholeskyArgs)                \
  X(eigen, EigenArgs)                      \
  X(sampled_softmax, SampledSoftmaxArgs)
#define EDGE_KERNELS(X) EDGE_OWN_KERNELS(X) EDGE_COMMON_KERNELS(X)

struct Kernels {
  const char* isa;
#define EDGE_POINTER(name, Args) void (*name)(const Args&, const Worker&);
  EDGE_KERNELS(EDGE_POINTER)
#undef EDGE_POINTER
};

namespace portable {
const Kernels& table();
}
namespace avx2 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}
namespace neon {
const Kernels& table();
}

}  // namespace edge
