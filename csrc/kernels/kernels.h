// The table of kernels of one instruction set. csrc/kernels/*.cpp is compiled once per instruction
// set into its own namespace (EDGE_ISA); nothing else of such a file is visible outside, because an
// inline function of the standard library compiled for AVX and merged by the linker would crash an
// older machine.
#pragma once

#include "kernels/adamw.h"
#include "kernels/binary.h"
#include "kernels/conv.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/indexing.h"
#include "kernels/matmul.h"
#include "kernels/minmax.h"
#include "kernels/pool.h"
#include "kernels/reduce.h"
#include "kernels/sgd.h"
#include "kernels/softmax_xent.h"
#include "kernels/transpose.h"
#include "kernels/unary.h"

namespace edge {

struct Kernels {
  const char* isa;
  void (*gemm)(const GemmArgs&, const Worker&);
  void (*conv)(const ConvArgs&, const Worker&);
  void (*conv_grad_x)(const ConvArgs&, const Worker&);
  void (*conv_grad_w)(const ConvArgs&, const Worker&);
  void (*relu)(const UnaryArgs&, const Worker&);
  void (*relu_grad)(const UnaryArgs&, const Worker&);
  void (*maxpool)(const PoolArgs&, const Worker&);
  void (*maxpool_grad)(const PoolArgs&, const Worker&);
  void (*avgpool)(const PoolArgs&, const Worker&);
  void (*avgpool_grad)(const PoolArgs&, const Worker&);
  void (*add)(const BinaryArgs&, const Worker&);
  void (*sub)(const BinaryArgs&, const Worker&);
  void (*mul)(const BinaryArgs&, const Worker&);
  void (*reduce_sum)(const ReduceArgs&, const Worker&);
  void (*transpose)(const TransposeArgs&, const Worker&);
  void (*softmax_xent)(const SoftmaxXentArgs&, const Worker&);
  void (*softmax_xent_grad)(const SoftmaxXentArgs&, const Worker&);
  void (*sgd)(const SgdArgs&, const Worker&);
  void (*copy)(const CopyArgs&, const Worker&);
  void (*unary)(const MapArgs&, const Worker&);
  void (*binary)(const BroadcastArgs&, const Worker&);
  void (*where)(const BroadcastArgs&, const Worker&);
  void (*minmax)(const MinmaxArgs&, const Worker&);
  void (*argminmax)(const ArgminmaxArgs&, const Worker&);
  void (*strided_copy)(const StridedCopyArgs&, const Worker&);
  void (*gather)(const GatherArgs&, const Worker&);
  void (*scatter_add)(const GatherArgs&, const Worker&);
  void (*cast)(const CastArgs&, const Worker&);
  void (*matmul)(const MatmulArgs&, const Worker&);
  void (*cumsum)(const CumsumArgs&, const Worker&);
  void (*topk)(const TopkArgs&, const Worker&);
  void (*adamw)(const AdamwArgs&, const Worker&);
  void (*blend)(const BlendArgs&, const Worker&);
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
