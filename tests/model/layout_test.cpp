// Layouts and weights: offsets, views into the flat buffer, lookup by suffix, gradient sums.
#include "model/layout.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace sala {
namespace {

Layout small_layout() {
  Layout layout;
  layout.name = "layers.3.block";
  layout.add("model.layers.3.input_layernorm.weight", {5}, false, Init::kOnes);
  layout.add("model.layers.3.self_attn.q_proj.weight", {7, 5}, true, Init::kNormal);
  layout.add("model.layers.3.self_attn.q_proj.bias", {7}, false, Init::kZeros);
  layout.add("model.layers.3.mlp.down_proj.weight", {64, 3}, true, Init::kNormal);
  return layout;
}

TEST(Layout, OffsetsAreAlignedAndDoNotOverlap) {
  const Layout layout = small_layout();
  int64_t end = 0;
  for (const Entry& entry : layout.entries) {
    EXPECT_EQ(entry.offset % 64, 0) << entry.name;
    EXPECT_GE(entry.offset, end) << entry.name;
    end = entry.offset + entry.num_elements();
  }
  EXPECT_EQ(layout.num_elements, 64 + 64 + 64 + 192);
  EXPECT_EQ(layout.find("model.layers.3.mlp.down_proj.weight")->num_elements(), 192);
  EXPECT_EQ(layout.find("down_proj.weight"), nullptr);  // full names only
}

TEST(Layout, RefusesANameTwiceAndAnEmptyTensor) {
  Layout layout = small_layout();
  EXPECT_THROW(layout.add("model.layers.3.input_layernorm.weight", {5}, false, Init::kOnes),
               c10::Error);
  EXPECT_THROW(layout.add("x", {5, 0}, false, Init::kOnes), c10::Error);
}

TEST(Weights, ViewsShareTheFlatBuffer) {
  Weights weights(small_layout(), at::kFloat, at::kCPU);
  EXPECT_EQ(weights.flat.abs().sum().item<float>(), 0);
  weights.views()[1].fill_(2);
  EXPECT_EQ(weights.flat.narrow(0, 64, 35).sum().item<float>(), 70);
  EXPECT_EQ(weights.flat.sum().item<float>(), 70);  // padding stays zero
  weights.flat.fill_(3);
  EXPECT_EQ(weights["down_proj.weight"].sum().item<float>(), 3 * 192);
}

TEST(Weights, FindBySuffixOfWholeParts) {
  const Weights weights(small_layout(), at::kBFloat16, at::kCPU);
  EXPECT_EQ(weights["q_proj.weight"].sizes(), at::IntArrayRef({7, 5}));
  EXPECT_EQ(weights["self_attn.q_proj.bias"].sizes(), at::IntArrayRef({7}));
  EXPECT_EQ(weights["model.layers.3.input_layernorm.weight"].numel(), 5);
  EXPECT_TRUE(weights["bias"].is_same(weights["q_proj.bias"]));
  EXPECT_FALSE(weights.find("k_proj.weight").defined());
  EXPECT_FALSE(weights.find("proj.weight").defined());  // part of a word is no suffix
  EXPECT_THROW(weights["k_proj.weight"], c10::Error);
  EXPECT_THROW(weights["weight"], c10::Error);  // several
  EXPECT_THROW(weights.find("weight"), c10::Error);
}

TEST(Weights, GradientsAreSummedInFp32) {
  Weights weights(small_layout(), at::kBFloat16, at::kCPU);
  EXPECT_FALSE(weights.grad.defined());
  const at::Tensor g = at::full({7, 5}, 1.0 / 256, at::kBFloat16);
  for (int i = 0; i < 3; ++i) weights.accumulate_grad(1, g);
  weights.accumulate_grad(1, at::ones({7, 5}, at::kBFloat16));
  ASSERT_EQ(weights.grad.scalar_type(), at::kFloat);
  EXPECT_TRUE(weights.grad.narrow(0, 64, 35).eq(1 + 3.0 / 256).all().item<bool>());
  EXPECT_EQ(weights.grad.narrow(0, 99, 29).abs().sum().item<float>(), 0);
  EXPECT_THROW(weights.accumulate_grad(1, at::ones({5, 7})), c10::Error);
  EXPECT_THROW(weights.accumulate_grad(4, g), c10::Error);
}

TEST(Weights, ViewsAreAutogradLeaves) {
  Weights weights(small_layout(), at::kDouble, at::kCPU);
  weights.flat.fill_(0.5);
  weights.set_requires_grad(true);
  const at::Tensor& w = weights["q_proj.weight"];
  ASSERT_TRUE(w.is_leaf() && w.requires_grad());
  ASSERT_FALSE(weights.flat.requires_grad());
  const at::Tensor x = at::ones({2, 5}, at::kDouble);
  const at::Tensor y = at::matmul(x, w.t()).sum();
  const auto grads = torch::autograd::grad({y}, {w});
  EXPECT_TRUE(grads[0].eq(2).all().item<bool>());
  weights.flat.fill_(1);  // a raw write into the buffer stays possible
  weights.set_requires_grad(false);
  EXPECT_FALSE(w.requires_grad());
}

}  // namespace
}  // namespace sala
