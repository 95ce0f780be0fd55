// Sums of weight gradients in a flat buffer: by entry, by product, with parts of a group frozen.
#include "model/weights/gradient.h"

#include <gtest/gtest.h>

namespace sala {
namespace {

LayoutPtr shared_layout() {
  Layout layout;
  layout.name = "layers.0.mixer";
  layout.add_group(
      {{"q_proj.weight", {5, 3}}, {"k_proj.weight", {2, 3}}, {"v_proj.weight", {4, 3}}}, true);
  layout.add_group({{"q_proj.bias", {5}}, {"k_proj.bias", {2}}, {"v_proj.bias", {4}}}, false);
  layout.add("norm.weight", {3}, false, Init::kOnes);
  return std::make_shared<const Layout>(std::move(layout));
}

// A buffer of sevens: what is not written shows.
Gradient sevens(std::vector<bool> trains, at::ScalarType dtype = at::kDouble) {
  LayoutPtr layout = shared_layout();
  return Gradient(layout, at::full({layout->num_elements}, 7, dtype), std::move(trains));
}

TEST(Gradient, NothingIsWantedByDefault) {
  Gradient none;
  EXPECT_FALSE(none.wants_any() || none.wants("norm.weight"));
  EXPECT_FALSE(none.wants_any("q_proj.weight", "v_proj.weight"));
  EXPECT_FALSE(none.view("norm.weight").defined());
  none.add("norm.weight", at::ones({3}));
  none.add_product("q_proj.weight", "v_proj.weight", at::ones({2, 11}), at::ones({2, 3}));
  none.add_bias("q_proj.bias", "v_proj.bias", at::ones({2, 11}));
}

TEST(Gradient, SumsAreFp32WhateverTheTypeOfWhatIsAdded) {
  Gradient gradient = sevens(std::vector<bool>(7, true), at::kFloat);
  gradient.flat.zero_();
  const at::Tensor g = at::full({3}, 1.0 / 256, at::kBFloat16);
  for (int i = 0; i < 3; ++i) gradient.add("norm.weight", g);
  gradient.add("norm.weight", at::ones({3}, at::kBFloat16));
  EXPECT_TRUE(gradient.view("norm.weight").eq(1 + 3.0 / 256).all().item<bool>());
  EXPECT_THROW(gradient.add("norm.weight", at::ones({4})), c10::Error);
}

TEST(Gradient, FrozenMembersOfAGroupStayUntouched) {
  at::manual_seed(3);
  const at::Tensor dy = at::randn({9, 11}, at::kDouble), x = at::randn({9, 3}, at::kDouble);
  const at::Tensor product = at::mm(dy.t(), x), sums = dy.sum(0);
  const char* matrices[] = {"q_proj.weight", "k_proj.weight", "v_proj.weight"};
  const char* biases[] = {"q_proj.bias", "k_proj.bias", "v_proj.bias"};
  const int64_t columns[] = {0, 5, 7, 11};
  for (int mask = 0; mask < 64; ++mask) {
    std::vector<bool> trains(7);
    for (int i = 0; i < 6; ++i) trains[i] = mask >> i & 1;
    Gradient gradient = sevens(trains);
    gradient.add_product("q_proj.weight", "v_proj.weight", dy, x);
    gradient.add_bias("q_proj.bias", "v_proj.bias", dy);
    at::Tensor expected = at::full_like(gradient.flat, 7);
    const LayoutPtr layout = shared_layout();
    for (int i = 0; i < 3; ++i) {
      const int64_t width = columns[i + 1] - columns[i];
      if (trains[i]) {
        group_view(*layout, expected, i, i).add_(product.narrow(0, columns[i], width));
      }
      if (trains[3 + i]) {
        group_view(*layout, expected, 3 + i, 3 + i).add_(sums.narrow(0, columns[i], width));
      }
      EXPECT_EQ(gradient.wants(matrices[i]), trains[i]);
      EXPECT_EQ(gradient.wants(biases[i]), trains[3 + i]);
    }
    EXPECT_TRUE(at::allclose(gradient.flat, expected, 1e-12, 1e-12)) << mask;
    EXPECT_TRUE(at::equal(gradient.view("norm.weight").defined()
                              ? at::Tensor(gradient.view("norm.weight"))
                              : at::full({3}, 7, at::kDouble),
                          at::full({3}, 7, at::kDouble)));
  }
}

// FP8 operands go where those in full precision go: frozen members stay as they are, the others get
// the sum of what the operands hold.
TEST(Gradient, Fp8OperandsOfAGroupGoToItsTrainedMembers) {
  at::manual_seed(4);
  const at::Tensor dy = at::randn({32, 11}), x = at::randn({32, 3});
  const Fp8Rows dy_columns = fp8_columns(dy), x_columns = fp8_columns(x);
  const at::Tensor product = fp8_product(dy_columns, x_columns, at::kDouble);
  const int64_t columns[] = {0, 5, 7, 11};
  const LayoutPtr layout = shared_layout();
  for (int mask = 0; mask < 8; ++mask) {
    std::vector<bool> trains(7);
    for (int i = 0; i < 3; ++i) trains[i] = mask >> i & 1;
    Gradient gradient = sevens(trains);
    EXPECT_EQ(gradient.wants_any("q_proj.weight", "v_proj.weight"), mask != 0);
    EXPECT_EQ(gradient.wants_any("k_proj.weight", "k_proj.weight"), trains[1]);
    gradient.add_product("q_proj.weight", "v_proj.weight", dy_columns, x_columns);
    at::Tensor expected = at::full_like(gradient.flat, 7);
    for (int i = 0; i < 3; ++i) {
      if (!trains[i]) continue;
      group_view(*layout, expected, i, i)
          .add_(product.narrow(0, columns[i], columns[i + 1] - columns[i]));
    }
    EXPECT_TRUE(at::allclose(gradient.flat, expected, 1e-12, 1e-12)) << mask;
  }
}

}  // namespace
}  // namespace sala
