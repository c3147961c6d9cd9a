#include "kernels/declare.h"

#define EDGE_NAME_OF(isa) #isa
#define EDGE_NAME(isa) EDGE_NAME_OF(isa)

namespace edge {
namespace EDGE_ISA {

namespace {
const Kernels kTable = {
    EDGE_NAME(EDGE_ISA),
    gemm,
    conv,
    conv_grad_x,
    conv_grad_w,
    relu,
    relu_grad,
    maxpool,
    maxpool_grad,
    avgpool,
    avgpool_grad,
    add,
    sub,
    mul,
    reduce_sum,
    transpose,
    softmax_xent,
    softmax_xent_grad,
    sgd,
    copy,
    unary,
    binary,
    where,
    minmax,
    argminmax,
    strided_copy,
    gather,
    scatter_add,
    cast,
    matmul,
    cumsum,
    topk,
    adamw,
    blend,
};
}  // namespace

const Kernels& table() { return kTable; }

}  // namespace EDGE_ISA
}  // namespace edge
