// The products of a block with its matrices, forward and to the gradient of their input, and which
// of them are made in FP8 (kernels/fp8.h). The third product, dW += dy^T x (gradient.h), never is:
// it sums over tokens, whose gradients differ by orders of magnitude, into the fp32 that small
// updates depend on, and what is lost there does not average out over a step as an activation's
// rounding does.
//
// FP8 operands live as long as their product: x and dy are rounded by rows, W by rows for the
// forward and by columns for the gradient, each time anew. For n weights and T tokens that moves
// 3 n bytes forward and 5 n backward beside 2 T n FLOPs each: at 8K tokens 5.5K and 3.3K FLOPs for
// a byte, where an H200 has about 400 in FP8. So about a tenth of the product's time pays for
// having no copy of the weights that must be kept, gathered and made anew after each step.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace sala {

// How products are made. The weights' type (bf16; fp32 and fp64 on a CPU) where not in FP8.
struct Matmul {
  // FP8 where tokens, inputs and outputs all reach this, and are multiples of kFp8Multiple; 0:
  // nowhere. Smaller products take longer in FP8 than in bf16.
  int64_t fp8_from = 0;

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
// dy (T, out) -> dx (T, in) = dy W.
at::Tensor linear_backward(const Matmul& matmul, const at::Tensor& dy, const at::Tensor& weight);

// A product of a block by itself: matrices that lie side by side are one.
struct BlockProduct {
  const char* name;  // as people call it: "q|k|v|z", "o", "gate|up", "down"
  int64_t in, out;
};
std::vector<BlockProduct> block_products(const ModelConfig& config, Mixer mixer);

}  // namespace sala
