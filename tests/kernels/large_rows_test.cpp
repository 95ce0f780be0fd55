// Row kernels, losses and the optimizer on tensors of more than 2^32 elements (AdamW: 2^31): no
// offset wraps. Skipped where the device has too little memory.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/ops.h"
#include "tests/kernels/large_tensors.h"

namespace sala::test {
namespace {

using Tensors = std::vector<at::Tensor>;
constexpr int64_t kWidth = kManyHeads * kWideHead, kTail = 99;

class LargeRowsCuda : public LargeTensors {
 protected:
  // Random in the last rows, zero before: what the others add to a weight's gradient is nothing.
  static at::Tensor gradient(at::IntArrayRef sizes) {
    at::Tensor d = at::zeros(sizes, bf16());
    d.slice(0, d.size(0) - kTail).normal_();
    return d;
  }
};

TEST_F(LargeRowsCuda, ResidualAndNorm) {
  if (!has_room(46)) GTEST_SKIP() << "needs 46 GiB";
  const at::Tensor weight = random({kWidth});
  expect_last_rows({random({kManyTokens, kWidth}), random({kManyTokens, kWidth})}, kTail,
                   [&](const Tensors& x) -> Tensors {
                     auto [h, u, rstd] = add_rmsnorm_forward(x[0], x[1], 0.5, weight, 1e-6);
                     return {h, u, rstd};
                   });
  const at::Tensor h = random({kManyTokens, kWidth}),
                   rstd = std::get<1>(rmsnorm_forward(h, weight, 1e-6));
  const at::Tensor d = gradient({kManyTokens, kWidth});
  expect_last_rows({d, d, h, rstd}, kTail, [&](const Tensors& x) -> Tensors {
    auto [dx, dweight] = add_rmsnorm_backward(x[0], x[1], x[2], weight, x[3]);
    return {dx, dweight};
  });
}

TEST_F(LargeRowsCuda, NormAndRotationOfHeads) {
  if (!has_room(38)) GTEST_SKIP() << "needs 38 GiB";
  const at::Tensor weight = random({kWideHead}), x = random({kManyTokens, kManyHeads, kWideHead});
  const at::Tensor angle = at::rand({kManyTokens, kWideHead / 2}, bf16().dtype(at::kFloat));
  const at::Tensor cos = angle.cos(), sin = angle.sin();
  expect_last_rows({x, cos, sin}, kTail, [&](const Tensors& t) -> Tensors {
    auto [y, rstd] = qk_norm_rope_forward(t[0], weight, t[1], t[2], 1e-6);
    return {y, rstd};
  });
  const at::Tensor rstd = std::get<1>(qk_norm_rope_forward(x, weight, cos, sin, 1e-6));
  expect_last_rows(
      {gradient(x.sizes()), x, rstd, cos, sin}, kTail, [&](const Tensors& t) -> Tensors {
        auto [dx, dweight] = qk_norm_rope_backward(t[0], t[1], weight, t[2], t[3], t[4]);
        return {dx, dweight};
      });
}

TEST_F(LargeRowsCuda, GatedNorm) {
  if (!has_room(48)) GTEST_SKIP() << "needs 48 GiB";
  const at::Tensor weight = random({kWidth});
  const at::Tensor o = random({kManyTokens, kWidth}), z = random({kManyTokens, kWidth});
  at::Tensor rstd;
  expect_last_rows({o, z}, kTail, [&](const Tensors& x) -> Tensors {
    auto [y, statistic] = gated_norm_forward(x[0], x[1], weight, 1e-6);
    if (!rstd.defined()) rstd = statistic;
    return {y, statistic};
  });
  expect_last_rows({gradient({kManyTokens, kWidth}), o, z, rstd}, kTail,
                   [&](const Tensors& x) -> Tensors {
                     auto [d_o, dz, dweight] = gated_norm_backward(x[0], x[1], x[2], weight, x[3]);
                     return {d_o, dz, dweight};
                   });
}

// gate and up are the columns of one tensor of twice as many elements.
TEST_F(LargeRowsCuda, Swiglu) {
  if (!has_room(66)) GTEST_SKIP() << "needs 66 GiB";
  constexpr int64_t kRows = (int64_t{1} << 18) + 8205, F = 16384;
  static_assert(kRows * F > int64_t{1} << 32);
  const auto half = [](const at::Tensor& both, int64_t i) { return both.narrow(1, i * F, F); };
  const at::Tensor gate_up = random({kRows, 2 * F});
  expect_last_rows({gate_up}, kTail, [&](const Tensors& x) -> Tensors {
    return {swiglu_forward(half(x[0], 0), half(x[0], 1))};
  });
  expect_last_rows({gate_up, random({kRows, F})}, kTail, [&](const Tensors& x) -> Tensors {
    const at::Tensor both = at::empty_like(x[0]);
    swiglu_backward(x[1], half(x[0], 0), half(x[0], 1), half(both, 0), half(both, 1));
    return {both};
  });
}

// The products are cuBLAS's, which may sum a row in another order in another shape.
TEST_F(LargeRowsCuda, LossesOverTheVocabulary) {
  if (!has_room(32)) GTEST_SKIP() << "needs 32 GiB";
  constexpr int64_t V = 512, kWeighted = 5;
  const at::Tensor x = random({kManyTokens, kWidth}).mul_(0.02), teacher = x.flip({1});
  const at::Tensor w = random({V, kWidth});
  const at::Tensor targets = at::randint(V, {kManyTokens}, bf16().dtype(at::kLong));
  at::Tensor weight = at::zeros({kManyTokens}, bf16().dtype(at::kFloat));
  weight.slice(0, kManyTokens - kWeighted).fill_(0.5);
  for (const bool distills : {false, true}) {
    SCOPED_TRACE(distills ? "KL" : "cross-entropy");
    const auto run = [&](int64_t n) -> Tensors {
      const auto tail = [n](const at::Tensor& t) { return t.slice(0, kManyTokens - n); };
      at::Tensor dx, d_w = at::zeros({V, kWidth}, weight.options());
      const VocabLoss loss =
          distills ? linear_kl(tail(x), w, 1, tail(teacher), w, 1, tail(targets), tail(weight),
                               {.ce_weight = 0.25}, &dx, d_w)
                   : linear_cross_entropy(tail(x), w, tail(targets), tail(weight), 1, &dx, d_w);
      return {last_rows(loss.loss_T, kTail), last_rows(dx, kTail), d_w, loss.loss_sum.view({1})};
    };
    const Tensors got = run(kManyTokens), expected = run(kTail);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(close(got[i], expected[i], tolerance(at::kBFloat16))) << "result " << i;
    }
  }
}

TEST_F(LargeRowsCuda, AdamW) {
  if (!has_room(42)) GTEST_SKIP() << "needs 42 GiB";
  constexpr int64_t n = (int64_t{1} << 31) + 4099;
  const at::TensorOptions fp32 = bf16().dtype(at::kFloat);
  at::Tensor master = at::ones({n}, fp32), m = at::zeros({n}, fp32), v = at::zeros({n}, fp32);
  const at::Tensor grad = at::zeros({n}, fp32);
  for (const at::Tensor& x : {master, m, grad}) x.slice(0, n - kTail).normal_();
  at::Tensor copy = at::empty({n}, bf16());
  Tensors tails;
  for (const at::Tensor& x : {master, m, v, grad, copy}) tails.push_back(last_rows(x, kTail));
  const AdamW options{.lr = 0.1, .weight_decay = 0.1, .step = 3};
  adamw_step(master, m, v, grad, copy, options);
  adamw_step(tails[0], tails[1], tails[2], tails[3], tails[4], options);
  EXPECT_TRUE(bit_equal(last_rows(master, kTail), tails[0]));
  EXPECT_TRUE(bit_equal(last_rows(m, kTail), tails[1]));
  EXPECT_TRUE(bit_equal(last_rows(v, kTail), tails[2]));
  EXPECT_TRUE(bit_equal(last_rows(copy, kTail), tails[4]));
}

}  // namespace
}  // namespace sala::test
