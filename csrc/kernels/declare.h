// The kernels of the instruction set this file is being compiled for, as one file sees another's.
#pragma once

#include "kernels/kernels.h"

#ifndef EDGE_ISA
#error "kernels are compiled with -DEDGE_ISA=<namespace>; see CMakeLists.txt"
#endif

namespace edge {
namespace EDGE_ISA {

void gemm(const GemmArgs& args, const Worker& worker);
void conv(const ConvArgs& args, const Worker& worker);
void conv_grad_x(const ConvArgs& args, const Worker& worker);
void conv_grad_w(const ConvArgs& args, const Worker& worker);
void relu(const UnaryArgs& args, const Worker& worker);
void relu_grad(const UnaryArgs& args, const Worker& worker);
void maxpool(const PoolArgs& args, const Worker& worker);
void maxpool_grad(const PoolArgs& args, const Worker& worker);
void avgpool(const PoolArgs& args, const Worker& worker);
void avgpool_grad(const PoolArgs& args, const Worker& worker);
void add(const BinaryArgs& args, const Worker& worker);
void sub(const BinaryArgs& args, const Worker& worker);
void mul(const BinaryArgs& args, const Worker& worker);
void reduce_sum(const ReduceArgs& args, const Worker& worker);
void transpose(const TransposeArgs& args, const Worker& worker);
void softmax_xent(const SoftmaxXentArgs& args, const Worker& worker);
void softmax_xent_grad(const SoftmaxXentArgs& args, const Worker& worker);
void sgd(const SgdArgs& args, const Worker& worker);
void copy(const CopyArgs& args, const Worker& worker);
void unary(const MapArgs& args, const Worker& worker);
void binary(const BroadcastArgs& args, const Worker& worker);
void where(const BroadcastArgs& args, const Worker& worker);
void minmax(const MinmaxArgs& args, const Worker& worker);
void argminmax(const ArgminmaxArgs& args, const Worker& worker);
void strided_copy(const StridedCopyArgs& args, const Worker& worker);
void gather(const GatherArgs& args, const Worker& worker);
void scatter_add(const GatherArgs& args, const Worker& worker);
void cast(const CastArgs& args, const Worker& worker);
void matmul(const MatmulArgs& args, const Worker& worker);
void cumsum(const CumsumArgs& args, const Worker& worker);
void topk(const TopkArgs& args, const Worker& worker);
void adamw(const AdamwArgs& args, const Worker& worker);
void blend(const BlendArgs& args, const Worker& worker);

}  // namespace EDGE_ISA
}  // namespace edge
