// Every operation, one line each: number in the plan file, name, inputs and outputs (optional ones
// counted), bit masks of the optional ones, attributes, the inputs that an output may be exactly (a
// bit mask), and whether there may be fewer operands than said, at least one of each.
//
// The checks of `name` and the call it becomes are prepare_name, in a prepare_*.cpp. Numbers are
// never used again for something else; gaps are free.
#pragma once

#define EDGE_OPS(X)                                                      \
  X(1, gemm, 3, 1, 0b100, 0, 3, 0, false)                                \
  X(2, conv, 3, 1, 0b100, 0, kWindow, 0, false)                          \
  X(3, conv_grad_x, 2, 1, 0, 0, kWindow, 0, false)                       \
  X(4, conv_grad_w, 2, 1, 0, 0, kWindow, 0, false)                       \
  X(5, relu, 1, 1, 0, 0, 0, kAnyInput, false)                            \
  X(6, relu_grad, 2, 1, 0, 0, 0, kAnyInput, false)                       \
  X(7, maxpool, 1, 2, 0, 0, kWindow, 0, false)                           \
  X(8, maxpool_grad, 2, 1, 0, 0, kWindow, 0, false)                      \
  X(9, avgpool, 1, 1, 0, 0, kWindow + 1, 0, false)                       \
  X(10, avgpool_grad, 1, 1, 0, 0, kWindow + 1, 0, false)                 \
  X(11, add, 2, 1, 0, 0, 0, kAnyInput, false)                            \
  X(12, sub, 2, 1, 0, 0, 0, kAnyInput, false)                            \
  X(13, mul, 2, 1, 0, 0, 0, kAnyInput, false)                            \
  X(14, reduce_sum, 1, 1, 0, 0, 2, 0, false)                             \
  X(15, transpose, 1, 1, 0, 0, kAnyNumber, 0, false)                     \
  X(16, softmax_xent, 2, 2, 0, 0, kAnyNumber, 0, false)                  \
  X(17, softmax_xent_grad, 3, 1, 0, 0, kAnyNumber, 0, false)             \
  X(18, sgd, 4, 2, 0b1000, 0b10, 3, kAnyInput, false)                    \
  X(19, copy, 1, 1, 0, 0, 0, kAnyInput, false)                           \
  X(20, unary, 1, 1, 0, 0, 1, kAnyInput, false)                          \
  X(21, binary, 2, 1, 0, 0, 1, kAnyInput, false)                         \
  X(22, where, 3, 1, 0, 0, 0, kAnyInput, false)                          \
  X(23, minmax, 1, 1, 0, 0, 2, 0, false)                                 \
  X(24, argminmax, 1, 1, 0, 0, 2, 0, false)                              \
  X(25, strided_copy, 2, 1, 0b10, 0, kAnyNumber, 0b10, false)            \
  X(26, gather, 2, 1, 0, 0, 2, 0, false)                                 \
  X(27, scatter_add, 2, 1, 0, 0, 2, 0, false)                            \
  X(28, cast, 1, 1, 0, 0, 0, 0, false)                                   \
  X(29, matmul, 2, 1, 0, 0, 2, 0, false)                                 \
  X(30, cumsum, 1, 1, 0, 0, 3, 0, false)                                 \
  X(31, topk, 1, 2, 0, 0, 3, 0, false)                                   \
  X(32, adamw, 6, 3, 0, 0, 4, kAnyInput, false)                          \
  X(33, blend, 2, 1, 0, 0, 1, kAnyInput, false)                          \
  X(40, map, kMaxInputs, kMaxOutputs, 0, 0, kAnyNumber, kAnyInput, true) \
  X(41, random, 2, 1, 0, 0, 2, 0, false)                                 \
  X(42, gemm_sgd, 5, 2, 0b10000, 0b10, 5, 0b10100, false)                \
  X(43, sampled_softmax, 4, 3, 0b1000, 0, kAnyNumber, 0, false)
