// The likeliest ids are the argmax of all logits, in any number of chunks.
#include "kernels/vocabulary/likeliest.h"

#include <gtest/gtest.h>

namespace sala {
namespace {

TEST(Likeliest, IdsAreTheArgmaxOfTheLogits) {
  at::Generator generator = at::detail::createCPUGenerator(3);
  for (const auto& [T, V] : {std::pair<int64_t, int64_t>{1, 7}, {33, 1000}, {700, 40'000}}) {
    const at::Tensor x = at::randn({T, 16}, generator, at::kFloat);
    const at::Tensor w = at::randn({V, 16}, generator, at::kFloat);
    EXPECT_TRUE(at::equal(likeliest_ids(x, w), at::mm(x, w.t()).argmax(1))) << T << " " << V;
  }
  const at::Tensor x = at::ones({2, 4}), w = at::ones({5, 4});
  EXPECT_TRUE(at::equal(likeliest_ids(x, w), at::zeros({2}, at::kLong)));  // the lowest of equals
}

}  // namespace
}  // namespace sala
