// Layouts and weights: offsets, views into the flat buffer, groups, lookup by suffix.
#include "model/weights/layout.h"

#include <gtest/gtest.h>

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

// q, k (odd sizes) and a bias between two tensors that stand alone.
Layout grouped_layout() {
  Layout layout;
  layout.name = "layers.0.mixer";
  layout.add("first.weight", {3}, false, Init::kOnes);
  layout.add_group(
      {{"q_proj.weight", {5, 3}}, {"k_proj.weight", {2, 3}}, {"v_proj.weight", {4, 3}}}, true);
  layout.add_group({}, false);
  layout.add_group({{"q_proj.bias", {5}, Init::kZeros}, {"k_proj.bias", {2}, Init::kZeros}}, false);
  layout.add("o_proj.weight", {3, 5}, true, Init::kNormal);
  return layout;
}

TEST(Layout, GroupsAreEndToEndAndAligned) {
  const Layout layout = grouped_layout();
  EXPECT_EQ(layout.find("q_proj.weight")->offset, 64);
  EXPECT_EQ(layout.find("k_proj.weight")->offset, 64 + 15);
  EXPECT_EQ(layout.find("v_proj.weight")->offset, 64 + 15 + 6);
  EXPECT_EQ(layout.find("q_proj.bias")->offset, 128);
  EXPECT_EQ(layout.find("k_proj.bias")->offset, 133);
  EXPECT_EQ(layout.find("o_proj.weight")->offset, 192);
  EXPECT_EQ(layout.index("k_proj.bias"), 5);
  EXPECT_EQ(layout.index("z_proj.weight"), -1);
}

TEST(Weights, GroupsAreOneMatrix) {
  Weights weights(grouped_layout(), at::kDouble, at::kCPU);
  weights.flat.copy_(at::arange(weights.flat.numel()));
  const at::Tensor all = weights.group("q_proj.weight", "v_proj.weight");
  EXPECT_TRUE(at::equal(all, at::cat({weights["q_proj.weight"], weights["k_proj.weight"],
                                      weights["v_proj.weight"]})));
  EXPECT_EQ(weights.group("k_proj.weight", "v_proj.weight").sizes(), at::IntArrayRef({6, 3}));
  EXPECT_EQ(weights.group("q_proj.bias", "k_proj.bias").sizes(), at::IntArrayRef({7}));
  EXPECT_THROW(weights.group("q_proj.weight", "o_proj.weight"), c10::Error);  // a gap
  EXPECT_THROW(weights.group("q_proj.weight", "z_proj.weight"), c10::Error);
}

}  // namespace
}  // namespace sala
