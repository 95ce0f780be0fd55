// One decision for each product, two ways to make it.
#include "model/weights/products.h"

#include <utility>

#include "kernels/range.h"
#include "model/weights/parts.h"

namespace sala {

namespace {

bool takes_fp8(const Matmul& matmul, const at::Tensor& tokens, const at::Tensor& weight) {
  return matmul.in_fp8(tokens.size(0), weight.size(1), weight.size(0));
}

// x W^T.
at::Tensor fp8_forward(const at::Tensor& x, const at::Tensor& weight) {
  const Range range("FP8 product");
  return fp8_product(fp8_rows(x), fp8_rows(weight), x.scalar_type());
}

// dy by rows, which dx takes, where that is wanted.
Fp8Rows add_fp8_gradient(const at::Tensor& dy, const at::Tensor& x, const Matrices& matrices,
                         bool wants_rows) {
  const Range range("FP8 weight gradient");
  Fp8Both made;
  if (wants_rows) {
    made = fp8_rows_and_columns(dy);
  } else {
    made.columns = fp8_columns(dy);
  }
  matrices.gradient.add_product(matrices.first, matrices.last, made.columns, fp8_columns(x));
  return made.rows;
}

}  // namespace

std::string Matmul::why_not_fp8(int64_t tokens, int64_t in, int64_t out) const {
  const std::pair<const char*, int64_t> sizes[] = {
      {" tokens at once", tokens}, {" inputs", in}, {" outputs", out}};
  for (const auto& [what, size] : sizes) {
    if (size < fp8_from) {
      return std::to_string(size) + what + " are fewer than fp8_from " + std::to_string(fp8_from);
    }
    if (size % kFp8Multiple != 0) {
      return std::to_string(size) + what + " are no multiple of " + std::to_string(kFp8Multiple);
    }
  }
  return "";
}

at::Tensor linear_forward(const Matmul& matmul, const at::Tensor& x, const at::Tensor& weight,
                          const at::Tensor& bias) {
  if (!takes_fp8(matmul, x, weight)) return at::linear(x, weight, bias);
  at::Tensor y = fp8_forward(x, weight);
  return bias.defined() ? y.add_(bias) : y;
}

at::Tensor add_linear(const Matmul& matmul, const at::Tensor& h, const at::Tensor& x,
                      const at::Tensor& weight, double scale, bool in_place) {
  at::Tensor sum = h;  // the same tensor
  if (takes_fp8(matmul, x, weight)) {
    const at::Tensor y = fp8_forward(x, weight);
    return in_place ? sum.add_(y, scale) : at::add(h, y, scale);
  }
  // The product adds by itself.
  const at::Tensor transposed = weight.t();
  return in_place ? sum.addmm_(x, transposed, 1.0, scale) : at::addmm(h, x, transposed, 1.0, scale);
}

at::Tensor linear_backward(const Matmul& matmul, const at::Tensor& dy, at::Tensor x,
                           const Matrices& matrices, bool wants_dx) {
  const auto& [weights, gradient, first, last] = matrices;
  const at::Tensor weight = weights.group(first, last);
  const bool fp8 = takes_fp8(matmul, dy, weight);
  Fp8Rows dy_rows;
  if (fp8 && matmul.fp8_gradients && gradient.wants_any(first, last)) {
    dy_rows = add_fp8_gradient(dy, x, matrices, wants_dx);
  } else {
    gradient.add_product(first, last, dy, x);
  }
  x.reset();
  if (!wants_dx) return {};
  if (!fp8) return at::mm(dy, weight);
  const Range range("FP8 product");
  if (!dy_rows.values.defined()) dy_rows = fp8_rows(dy);
  return fp8_product(dy_rows, fp8_columns(weight), dy.scalar_type());
}

std::vector<BlockProduct> block_products(const ModelConfig& c, Mixer mixer) {
  const int64_t q = c.q_size(), projected = q + 2 * c.kv_size(mixer);
  const bool gate = gate_name(c, mixer) != nullptr;
  return {{gate ? "q|k|v|z" : "q|k|v", c.width, gate ? projected + q : projected, false},
          {"o", q, c.width, false},
          {"gate|up", c.width, 2 * c.ffn_width, true},
          {"down", c.ffn_width, c.width, true}};
}

}  // namespace sala
