// Copies of columns against LibTorch's, bit by bit, and the squared error against plain loops.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "kernels/columns.h"
#include "kernels/squared_error.h"
#include "kernels/twins/values.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

class Columns : public OpInPlace {};
class SquaredErrorOp : public OpInPlace {};

// Whole chunks of 16 bytes and not, one row and many, two dimensions and three.
TEST_P(Columns, AreCopiedBitByBit) {
  for (const auto& [rows, width, begin, count] :
       std::vector<std::array<int64_t, 4>>{{1, 64, 0, 64},
                                           {1, 64, 32, 32},
                                           {3, 40, 8, 16},
                                           {700, 1344, 576, 192},
                                           {129, 96, 5, 24},
                                           {33, 37, 3, 11},
                                           {2050, 64, 16, 8},
                                           {0, 64, 8, 8}}) {
    SCOPED_TRACE(::testing::Message() << rows << " rows, " << count << " of " << width);
    const at::Tensor all = random({rows, width});
    const at::Tensor part = all.narrow(1, begin, count);
    const at::Tensor dense = dense_columns(part);
    EXPECT_TRUE(dense.is_contiguous());
    EXPECT_TRUE(bit_equal(dense, part.contiguous()));
    const at::Tensor to = random({rows, width}), expected = to.clone();
    expected.narrow(1, begin, count).copy_(part);
    copy_columns(to.narrow(1, begin, count), dense);
    EXPECT_TRUE(bit_equal(to, expected)) << "columns beside them keep their bits";
    if (count % 8 != 0) continue;
    const auto by_head = [&](const at::Tensor& x) { return x.view({rows, count / 8, 8}); };
    EXPECT_TRUE(bit_equal(dense_columns(by_head(part)), by_head(dense)));
  }
}

TEST_P(Columns, ThatAreDenseAreNotCopied) {
  const at::Tensor x = random({5, 8});
  EXPECT_TRUE(dense_columns(x).is_same(x));
  EXPECT_THROW(copy_columns(x, random({5, 9})), c10::Error);
  EXPECT_THROW(dense_columns(random({8, 5}).t()), c10::Error);
}

TEST_P(SquaredErrorOp, EqualsItsDefinition) {
  constexpr double kScale = 0.37;
  for (const auto& [rows, C] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {3, 17}, {1, 8}, {130, 33}, {700, 576}, {1025, 2048}}) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << C);
    const at::Tensor y = random({rows, C}), target = random({rows, C});
    const auto [error, dy] = squared_error(y, target, kScale);
    const auto a = values_of(y), b = values_of(target);
    std::vector<double> expected(a.size());
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      sum += (a[i] - b[i]) * (a[i] - b[i]);
      expected[i] = 2 * kScale * (a[i] - b[i]);
    }
    EXPECT_EQ(error.scalar_type(), at::kDouble);
    EXPECT_NEAR(error.item<double>(), kScale * sum, 1e-5 * sum);
    EXPECT_TRUE(close(dy, tensor_of(expected, y.sizes(), y.scalar_type())));
    const auto [error_again, dy_again] = squared_error(y, target, kScale);
    EXPECT_TRUE(bit_equal(error, error_again));
    EXPECT_TRUE(bit_equal(dy, dy_again));
  }
}

INSTANTIATE_TEST_SUITE_P(Places, Columns, all_places(), place_name);
INSTANTIATE_TEST_SUITE_P(Places, SquaredErrorOp, all_places(), place_name);

}  // namespace
}  // namespace sala::test
