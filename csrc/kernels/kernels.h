// The table of kernels of one instruction set. csrc/kernels/*.cpp is compiled once per instruction
// set into its own namespace (EDGE_ISA); nothing else of such a file is visible outside, because an
// inline function of the standard library compiled for AVX and merged by the linker would crash an
// older machine.
#pragma once

#include "kernels/conv.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/pool.h"
#include "kernels/reduce.h"
#include "kernels/sgd.h"
#include "kernels/softmax_xent.h"
#include "kernels/transpose.h"

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
