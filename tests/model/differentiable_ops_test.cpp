// Gradients through the differentiable functions against central differences in fp64, and what
// happens to inputs that are optional, frozen or not contiguous.

#include "tests/model/differentiable_ops.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <vector>

#include "kernels/ops.h"

namespace sala {
namespace {

using at::Tensor;
using Inputs = std::vector<Tensor>;

Tensor leaf(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble).set_requires_grad(true); }

// Every element of every input that requires a gradient. `f` gives a tensor; a fixed random
// projection makes a number of it.
void expect_gradients(const std::function<Tensor(const Inputs&)>& f, const Inputs& inputs) {
  const Tensor projection = at::randn_like(f(inputs).detach());
  const auto value = [&] {
    const at::NoGradGuard no_grad;
    return (f(inputs) * projection).sum().item<double>();
  };
  (f(inputs) * projection).sum().backward();
  constexpr double kStep = 1e-5;
  for (size_t n = 0; n < inputs.size(); ++n) {
    if (!inputs[n].defined() || !inputs[n].requires_grad()) continue;
    ASSERT_TRUE(inputs[n].grad().defined()) << "input " << n;
    double* data = inputs[n].data_ptr<double>();
    const Tensor grad = inputs[n].grad().contiguous();
    for (int64_t i = 0; i < inputs[n].numel(); ++i) {
      const double kept = data[i];
      data[i] = kept + kStep;
      const double above = value();
      data[i] = kept - kStep;
      const double below = value();
      data[i] = kept;
      const double expected = (above - below) / (2 * kStep);
      ASSERT_NEAR(grad.const_data_ptr<double>()[i], expected, 1e-6 * (1 + std::abs(expected)))
          << "input " << n << ", element " << i;
    }
  }
}

class Autograd : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(21); }
};

constexpr double kEps = 1e-6;

TEST_F(Autograd, RmsnormGradients) {
  expect_gradients([](const Inputs& x) { return rmsnorm(x[0], x[1], kEps); },
                   {leaf({3, 7}), leaf({7})});
}

TEST_F(Autograd, AddRmsnormGradientsThroughTheSumAndTheNorm) {
  for (double scale : {1.0, 0.22}) {
    const auto both = [scale](const Inputs& x) {
      const auto [h, u] = add_rmsnorm(x[0], x[1], scale, x[2], kEps);
      return at::cat({h, u});
    };
    const auto norm = [scale](const Inputs& x) {
      return std::get<1>(add_rmsnorm(x[0], x[1], scale, x[2], kEps));
    };
    expect_gradients(both, {leaf({3, 7}), leaf({3, 7}), leaf({7})});
    expect_gradients(norm, {leaf({3, 7}), leaf({3, 7}), leaf({7})});
    const Tensor x = leaf({3, 7}), y = leaf({3, 7}), weight = leaf({7});
    std::get<0>(add_rmsnorm(x, y, scale, weight, kEps)).sum().backward();
    EXPECT_TRUE(at::equal(x.grad(), at::ones_like(x)));
    EXPECT_TRUE(at::allclose(y.grad(), at::full_like(y, scale)));
    EXPECT_FALSE(weight.grad().defined());
  }
}

TEST_F(Autograd, QkNormRopeGradientsWithAndWithoutItsParts) {
  const Tensor angle = at::randn({3, 2}, at::kDouble);
  for (bool norm : {false, true}) {
    for (bool rope : {false, true}) {
      const Tensor cos = rope ? angle.cos() : Tensor(), sin = rope ? angle.sin() : Tensor();
      expect_gradients([&](const Inputs& x) { return qk_norm_rope(x[0], x[1], cos, sin, kEps); },
                       {leaf({3, 2, 4}), norm ? leaf({4}) : Tensor()});
    }
  }
}

TEST_F(Autograd, SwigluGradients) {
  expect_gradients([](const Inputs& x) { return swiglu(x[0], x[1]); },
                   {leaf({3, 5}), leaf({3, 5})});
}

TEST_F(Autograd, GatedNormGradientsWithAndWithoutAWeight) {
  for (bool norm : {false, true}) {
    expect_gradients([](const Inputs& x) { return gated_norm(x[0], x[1], x[2], kEps); },
                     {leaf({3, 5}), leaf({3, 5}), norm ? leaf({5}) : Tensor()});
  }
}

TEST_F(Autograd, DenseAttentionGradients) {
  const Documents docs = Documents::from_starts({0, 3}, 7, at::kCPU);
  expect_gradients([&](const Inputs& x) { return dense_attention(x[0], x[1], x[2], docs, 0.5); },
                   {leaf({7, 4, 4}), leaf({7, 2, 4}), leaf({7, 2, 4})});
}

TEST_F(Autograd, LightningGradientsThroughOutputAndState) {
  const Documents docs = Documents::from_starts({0, 3}, 7, at::kCPU);
  const Tensor slopes = lightning_slopes(2);
  for (bool carried : {false, true}) {
    expect_gradients(
        [&](const Inputs& x) {
          const auto [o, state] = lightning_attention(x[0], x[1], x[2], slopes, docs, 0.5, x[3]);
          return at::cat({o.reshape(-1), state.reshape(-1)});
        },
        {leaf({7, 2, 4}), leaf({7, 2, 4}), leaf({7, 2, 4}),
         carried ? leaf({2, 2, 4, 4}) : Tensor()});
    expect_gradients(
        [&](const Inputs& x) {
          return std::get<0>(lightning_attention(x[0], x[1], x[2], slopes, docs, 0.5, x[3]));
        },
        {leaf({7, 2, 4}), leaf({7, 2, 4}), leaf({7, 2, 4}),
         carried ? leaf({2, 2, 4, 4}) : Tensor()});
  }
}

TEST_F(Autograd, BlockSparseGradientsWithGivenBlocks) {
  const Documents docs = Documents::single(9, at::kCPU);
  // Blocks of 4 tokens: the query's own, and block 0 once it is another.
  Tensor blocks = at::full({2, 9, 2}, -1, at::kInt);
  for (int64_t t = 0; t < 9; ++t) {
    blocks.select(1, t).select(1, 0).fill_(0);
    if (t >= 4) blocks.select(1, t).select(1, 1).fill_(t / 4);
  }
  expect_gradients(
      [&](const Inputs& x) {
        return block_sparse_attention(x[0], x[1], x[2], blocks, docs, 4, 0.5);
      },
      {leaf({9, 4, 4}), leaf({9, 2, 4}), leaf({9, 2, 4})});
}

TEST_F(Autograd, FrozenInputsGetNoGradient) {
  const Tensor x = leaf({3, 7}), weight = at::randn({7}, at::kDouble);
  rmsnorm(x, weight, kEps).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(weight.grad().defined());
  EXPECT_FALSE(rmsnorm(x.detach(), weight, kEps).requires_grad());
  const Tensor trained = leaf({7});
  rmsnorm(x.detach(), trained, kEps).sum().backward();
  EXPECT_TRUE(trained.grad().defined());
}

TEST_F(Autograd, TakesViewsThatAreNotContiguous) {
  const Tensor both = leaf({3, 10});
  expect_gradients(
      [](const Inputs& x) { return swiglu(x[0].narrow(1, 0, 5), x[0].narrow(1, 5, 5)).t(); },
      {both});
}

}  // namespace
}  // namespace sala
