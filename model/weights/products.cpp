// One decision for each product, two ways to make it.
#include "model/weights/products.h"

#include <algorithm>

#include "kernels/fp8.h"
#include "kernels/range.h"
#include "model/weights/parts.h"

namespace sala {

namespace {

bool takes_fp8(const Matmul& matmul, const at::Tensor& tokens, const at::Tensor& weight) {
  return matmul.in_fp8(tokens.size(0), weight.size(1), weight.size(0));
}

// Sums run over thousands of products, 2F of them in the gradient of gate and up, and what fast
// sums lose on the way is cut off, always towards zero.
constexpr Fp8Sum kSum = Fp8Sum::kExact;

// x W^T.
at::Tensor fp8_forward(const at::Tensor& x, const at::Tensor& weight) {
  const Range range("FP8 product");
  return fp8_product(fp8_rows(x), fp8_rows(weight), x.scalar_type(), kSum);
}

}  // namespace

bool Matmul::in_fp8(int64_t tokens, int64_t in, int64_t out) const {
  if (fp8_from == 0) return false;
  const auto fits = [&](int64_t size) { return size >= fp8_from && size % kFp8Multiple == 0; };
  return fits(tokens) && fits(in) && fits(out);
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

at::Tensor linear_backward(const Matmul& matmul, const at::Tensor& dy, const at::Tensor& weight) {
  if (!takes_fp8(matmul, dy, weight)) return at::mm(dy, weight);
  const Range range("FP8 product");
  return fp8_product(fp8_rows(dy), fp8_columns(weight), dy.scalar_type(), kSum);
}

std::vector<BlockProduct> block_products(const ModelConfig& c, Mixer mixer) {
  const int64_t q = c.q_size(), projected = q + 2 * c.kv_size(mixer);
  const bool gate = gate_name(c, mixer) != nullptr;
  return {{gate ? "q|k|v|z" : "q|k|v", c.width, gate ? projected + q : projected},
          {"o", q, c.width},
          {"gate|up", c.width, 2 * c.ffn_width},
          {"down", c.ffn_width, c.width}};
}

}  // namespace sala
