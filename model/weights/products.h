// The products of a block with its matrices: forward, and in the backward to the gradients of their
// input and of the matrix; and which of them are made in FP8 (kernels/fp8.h). The third, dW += dy^T
// x, sums over tokens, whose gradients differ by orders of magnitude, so it asks for itself: a
// column of dy has one scale, and what a token adds is rounded to 1/16 of itself, or of 1/28672 of
// the column's largest where it is smaller. Rounding errors of tokens are independent and go to the
// nearest, and the sum is fp32 as ever.
//
// FP8 operands live as long as their product: x, dy and W are rounded anew each time, by rows or by
// columns as the product sums. In bytes, for n = in * out weights and T tokens (rows: 3 an element,
// columns: 5, both at once: 6; kernels/fp8/):
//   forward  W by rows 3 n, x by rows 3 T in
//   dx       W by columns 5 n, dy by rows 3 T out
//   dW       x by columns 5 T in, and dy by rows and columns: 6 T out instead of 3
// For a lightning layer of the 8B shape (285M weights; in 28.7K and out 57.3K, summed over its
// products) and 8K tokens: 8 n = 2.3 GB, 8 T in = 1.9 GB, 6 T out = 2.8 GB, at 4 TB/s 1.8 ms beside
// three products of 4.7 TFLOPs each, 20 ms in bf16 at 700 TFLOP/s. Weights that are kept in FP8 for
// a step would save most of 8 n where a step has several micro-batches, at 2 n bytes that are held
// (18 GB in all), gathered and made anew after each update: at most 4 %, which is not worth it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/weights/gradient.h"
#include "model/weights/layout.h"

namespace sala {

// How products are made. The weights' type (bf16; fp32 and fp64 on a CPU) where not in FP8.
struct Matmul {
  // FP8 where tokens, inputs and outputs all reach this, and are multiples of kFp8Multiple; 0:
  // nowhere. Smaller products take longer in FP8 than in bf16.
  int64_t fp8_from = 0;
  bool fp8_gradients = false;  // those of weights too

  bool in_fp8(int64_t tokens, int64_t in, int64_t out) const {
    return fp8_from > 0 && why_not_fp8(tokens, in, out).empty();
  }
  // The first of the sizes that stands against it, in words ("576 inputs are fewer than fp8_from
  // 2048"); empty: none does.
  std::string why_not_fp8(int64_t tokens, int64_t in, int64_t out) const;
};

// x (T, in), weight (out, in), bias (out) or undefined -> y (T, out) = x W^T + bias.
at::Tensor linear_forward(const Matmul& matmul, const at::Tensor& x, const at::Tensor& weight,
                          const at::Tensor& bias = {});
// h (T, out) + scale * x W^T, written into h where it may be (`in_place`).
at::Tensor add_linear(const Matmul& matmul, const at::Tensor& h, const at::Tensor& x,
                      const at::Tensor& weight, double scale, bool in_place);

// The matrices `first` … `last` of a group, and where their gradients are added.
struct Matrices {
  const Weights& weights;
  Gradient& gradient;
  std::string_view first, last;
};
// dy (T, out), x (T, in) -> dx (T, in) = dy W, undefined where it is not wanted; the gradient of W
// += dy^T x. Lets go of x before it makes dx.
at::Tensor linear_backward(const Matmul& matmul, const at::Tensor& dy, at::Tensor x,
                           const Matrices& matrices, bool wants_dx = true);

// A product of a block by itself: matrices that lie side by side are one.
struct BlockProduct {
  const char* name;  // as people call it: "q|k|v|z", "o", "gate|up", "down"
  int64_t in, out;
  bool feed_forward;
};
std::vector<BlockProduct> block_products(const ModelConfig& config, Mixer mixer);

}  // namespace sala
