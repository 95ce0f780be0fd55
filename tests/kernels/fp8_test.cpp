// FP8 operands and products: op against twin in every place, what rounding costs, values that are
// huge, zero or not finite.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/fp8.h"
#include "kernels/fp8/add_product.h"
#include "kernels/twins/fp8.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

using Sizes = std::vector<std::pair<int64_t, int64_t>>;

::testing::AssertionResult same_rows(const Fp8Rows& a, const Fp8Rows& b) {
  const auto equal = [](const at::Tensor& x, const at::Tensor& y) {
    return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() &&
           at::allclose(exact(x), exact(y), 0, 0, /*equal_nan=*/true);
  };
  if (!equal(a.scale, b.scale)) return ::testing::AssertionFailure() << "scales differ";
  if (!equal(a.values, b.values)) return ::testing::AssertionFailure() << "values differ";
  return ::testing::AssertionSuccess();
}

at::Tensor widened(const Fp8Rows& rows) {
  return exact(rows.values) * exact(rows.scale).unsqueeze(1);
}

double relative_error(const at::Tensor& y, const at::Tensor& expected) {
  return ((exact(y) - expected).norm() / expected.norm()).item<double>();
}

class Fp8 : public OpInPlace {
 protected:
  // The tolerance of sums: fp32 whatever the operands were, but FP8 cores add in fewer bits and the
  // product may be rounded on the way.
  Tolerance added() const {
    return has_fp8_cores(device())
               ? tolerance(at::kBFloat16)
               : tolerance(GetParam().dtype == at::kDouble ? at::kDouble : at::kFloat);
  }
  // Magnitudes over many orders, as gradients have them, and a few far above the rest.
  at::Tensor with_outliers(at::IntArrayRef sizes) const {
    const at::Tensor wide = at::randn(sizes, at::kDouble) * at::randn(sizes, at::kDouble).exp();
    const at::Tensor rare = (at::rand(sizes, at::kDouble) < 0.01).to(at::kDouble);
    return (wide * (1 + 1e4 * rare)).to(GetParam().dtype).to(device());
  }
};

TEST_P(Fp8, RowsEqualTheTwinInEveryBit) {
  for (const auto& [rows, K] : Sizes{{1, 1},
                                     {3, 17},
                                     {5, 577},
                                     {130, 33},
                                     {19, 576},
                                     {7, 4096},
                                     {3, 16384},
                                     {2, 32768},
                                     {2, 40000},
                                     {2, 40001}}) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << K);
    for (const at::Tensor& x : {random({rows, K}), with_outliers({rows, K})}) {
      EXPECT_TRUE(same_rows(fp8_rows(x), fp8_rows_twin(x.cpu())));
    }
  }
}

TEST_P(Fp8, ColumnsEqualTheTwinInEveryBit) {
  for (const auto& [rows, K] :
       Sizes{{1, 1}, {1, 7}, {17, 3}, {128, 64}, {129, 65}, {300, 16}, {64, 577}, {1030, 264}}) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << K);
    for (const at::Tensor& x : {random({rows, K}), with_outliers({rows, K})}) {
      EXPECT_TRUE(same_rows(fp8_columns(x), fp8_columns_twin(x.cpu())));
      EXPECT_TRUE(same_rows(fp8_columns(x), fp8_rows(x.t().contiguous())));
    }
  }
}

TEST_P(Fp8, RowsAndColumnsAtOnceAreBoth) {
  for (const auto& [rows, K] : Sizes{{1, 1},
                                     {1, 7},
                                     {17, 3},
                                     {128, 64},
                                     {129, 65},
                                     {300, 16},
                                     {64, 577},
                                     {1030, 264},
                                     {400, 1544}}) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << K);
    for (at::Tensor x : {random({rows, K}), with_outliers({rows, K})}) {
      for (const double bad : {1.0, std::nan("")}) {
        x[rows / 2][K / 2].fill_(bad);
        const Fp8Both both = fp8_rows_and_columns(x);
        EXPECT_TRUE(same_rows(both.rows, fp8_rows(x)));
        EXPECT_TRUE(same_rows(both.columns, fp8_columns(x)));
      }
    }
  }
}

TEST_P(Fp8, RoundingCostsWhatTheHeaderSays) {
  for (const at::Tensor& x : {random({40, 300}), with_outliers({40, 300})}) {
    const Fp8Rows rows = fp8_rows(x);
    const at::Tensor wanted = exact(x), error = (widened(rows) - wanted).abs();
    const at::Tensor least = wanted.abs().amax(1, true) * (std::ldexp(1.0, -10) / 448);
    // The scale and its inverse are fp32.
    EXPECT_TRUE((error <= at::maximum(wanted.abs() / 16, least) * (1 + 1e-5)).all().item<bool>());
    const at::Tensor largest = exact(rows.values).abs().amax(1);
    EXPECT_TRUE(largest.eq(448).all().item<bool>()) << "a row does not use all of e4m3";
  }
}

TEST_P(Fp8, ARowOfZerosIsZero) {
  at::Tensor x = random({6, 64});
  const at::Tensor w = random({32, 64});
  x[2].zero_();
  x[4].fill_(1e-35);  // below what has a scale of its own
  const Fp8Rows rows = fp8_rows(x);
  EXPECT_TRUE(same_rows(rows, fp8_rows_twin(x.cpu())));
  const at::Tensor y = fp8_product(rows, fp8_rows(w), x.scalar_type());
  EXPECT_TRUE(y.isfinite().all().item<bool>());
  EXPECT_TRUE(y[2].eq(0).all().item<bool>());
  EXPECT_LE(y[4].abs().max().item<double>(), 1e-30);
  const Fp8Rows columns = fp8_columns(at::zeros_like(x));
  EXPECT_TRUE(exact(columns.values).eq(0).all().item<bool>());
  EXPECT_TRUE(columns.scale.isfinite().all().item<bool>());
}

// Nothing that is not finite may look like a number after it, nor spoil what it has no part in.
TEST_P(Fp8, WhatIsNotFiniteStaysVisibleInItsRow) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const at::Tensor x = random({48, 80}), w = random({32, 80}), dy = random({48, 32});
  const auto forward = [](const at::Tensor& a, const at::Tensor& b) {
    return fp8_product(fp8_rows(a), fp8_rows(b), a.scalar_type());
  };
  const at::Tensor y = forward(x, w);
  for (const double bad : {std::nan(""), kInfinity, -kInfinity}) {
    SCOPED_TRACE(bad);
    at::Tensor bad_x = x.clone(), bad_w = w.clone();
    bad_x[17][3].fill_(bad);
    bad_w[5][79].fill_(bad);
    EXPECT_TRUE(same_rows(fp8_rows(bad_x), fp8_rows_twin(bad_x.cpu())));
    EXPECT_TRUE(same_rows(fp8_columns(bad_x), fp8_columns_twin(bad_x.cpu())));
    expect_stays_between(y, forward(bad_x, w), 17, 18);
    EXPECT_TRUE(forward(bad_x, w)[17].isnan().all().item<bool>());
    const at::Tensor by_weight = forward(x, bad_w);
    expect_stays_between(y.t().contiguous(), by_weight.t().contiguous(), 5, 6);
    EXPECT_TRUE(by_weight.select(1, 5).isnan().all().item<bool>());
    const at::Tensor dx = fp8_product(fp8_rows(dy), fp8_columns(bad_w), dy.scalar_type());
    EXPECT_TRUE(dx.select(1, 79).isnan().all().item<bool>());
    EXPECT_TRUE(dx.slice(1, 0, 79).isfinite().all().item<bool>());
  }
}

TEST_P(Fp8, ProductsEqualTheTwin) {
  for (const auto& [M, N, K] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 1}, {3, 5, 17}, {33, 48, 64}, {16, 16, 16}, {130, 64, 272}, {64, 33, 48}}) {
    SCOPED_TRACE(::testing::Message() << M << " x " << N << " x " << K);
    const Fp8Rows a = fp8_rows(with_outliers({M, K})), b = fp8_rows(random({N, K}));
    const Fp8Rows a_cpu{a.values.cpu(), a.scale.cpu()}, b_cpu{b.values.cpu(), b.scale.cpu()};
    const at::Tensor expected = fp8_product_twin(a_cpu, b_cpu, GetParam().dtype);
    const at::Tensor y = fp8_product(a, b, GetParam().dtype);
    EXPECT_EQ(y.scalar_type(), GetParam().dtype);
    EXPECT_TRUE(close(y, expected));
    EXPECT_TRUE(bit_equal(y, fp8_product(a, b, GetParam().dtype))) << "another time";
  }
}

// Sums that hold something already, of sizes that FP8 cores take and others.
TEST_P(Fp8, SumsGrowByTheProduct) {
  for (const auto& [M, N, K] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 1}, {3, 5, 17}, {48, 32, 64}, {16, 16, 16}, {144, 64, 272}, {64, 33, 48}}) {
    SCOPED_TRACE(::testing::Message() << M << " x " << N << " x " << K);
    const Fp8Rows a = fp8_columns(with_outliers({K, M})), b = fp8_columns(random({K, N}));
    const at::Tensor before = random_wide({M, N}) * 10;
    const Fp8Rows a_cpu{a.values.cpu(), a.scale.cpu()}, b_cpu{b.values.cpu(), b.scale.cpu()};
    const at::Tensor expected = fp8_add_product_twin(before.cpu(), a_cpu, b_cpu);
    const at::Tensor sum = before.clone(), again = before.clone();
    fp8_add_product(sum, a, b);
    fp8_add_product(again, a, b);
    EXPECT_TRUE(close(sum, expected, added()));
    EXPECT_TRUE(bit_equal(sum, again)) << "another time";
  }
}

// Both ways to add, whichever is taken: the one without rounding has no more than sums in fp32
// lose.
TEST_P(Fp8, BothWaysToAddAgree) {
  const Fp8Rows a = fp8_columns(random({512, 256})), b = fp8_columns(random({512, 128}));
  const at::Tensor before = at::ones({256, 128}, b.scale.options());
  const at::Tensor expected = widened(a).mm(widened(b).t()) + 1;
  const at::Tensor rounded = before.clone(), whole = before.clone();
  fp8_add_rounded(rounded, a, b);
  EXPECT_LE(relative_error(rounded, expected), 3e-3);
  if (!has_fp8_cores(device())) return;
  const bool taken = fp8_add_in_product(whole, a, b);
  std::cout << "cuBLASLt adds FP8 products to fp32 here: " << (taken ? "yes" : "no") << "\n";
  RecordProperty("added_by_cublaslt", taken);
  if (taken) {
    EXPECT_LE(relative_error(whole, expected), 1e-3);
  } else {
    EXPECT_TRUE(bit_equal(whole, before)) << "a refusal wrote something";
  }
}

// Against the exact product of the operands before rounding: forward, and the gradients of input
// and weights. 3.7 % is what independent rounding of both makes of it.
TEST_P(Fp8, ProductsOfNormalValuesAreOffByFourPercent) {
  const int64_t T = 256, in = 512, out = 768;
  const at::Tensor x = random({T, in}), w = random({out, in}), dy = random({T, out});
  const at::Tensor y = fp8_product(fp8_rows(x), fp8_rows(w), x.scalar_type());
  const at::Tensor dx = fp8_product(fp8_rows(dy), fp8_columns(w), x.scalar_type());
  const at::Tensor dw = at::zeros({out, in}, at::TensorOptions(device()));
  fp8_add_product(dw, fp8_columns(dy), fp8_columns(x));
  EXPECT_LE(relative_error(dw, exact(dy).t().mm(exact(x))), 0.042);
  const double forward = relative_error(y, exact(x).mm(exact(w).t()));
  const double backward = relative_error(dx, exact(dy).mm(exact(w)));
  EXPECT_LE(forward, 0.042);
  EXPECT_LE(backward, 0.042);
  EXPECT_GE(forward, 0.03) << "this is no FP8";
}

// Rows of very different size, as gradients of tokens are: each keeps its own precision.
TEST_P(Fp8, EveryRowHasItsOwnScale) {
  const at::Tensor size = at::logspace(-12, 12, 64, 10, at::kDouble).unsqueeze(1);
  const at::Tensor x = (at::randn({64, 512}, at::kDouble) * size).to(GetParam().dtype).to(device());
  const at::Tensor w = random({64, 512});
  const at::Tensor expected = exact(x).mm(exact(w).t());
  const at::Tensor y = fp8_product(fp8_rows(x), fp8_rows(w), x.scalar_type());
  for (int64_t t = 0; t < 64; ++t) EXPECT_LE(relative_error(y[t], expected[t]), 0.08) << t;
}

// Long sums of one sign, where adding in few bits would show: what sums add to the error of the
// operands, which the widened product of the same operands has as well.
TEST_P(Fp8, LongSumsKeepTheirSize) {
  if (!has_fp8_cores(device())) GTEST_SKIP() << "no FP8 cores";
  const at::Tensor x = random({256, 16384}).abs(), w = random({256, 16384}).abs();
  const Fp8Rows a = fp8_rows(x), b = fp8_rows(w);
  const at::Tensor expected = widened(a).mm(widened(b).t());
  EXPECT_LE(relative_error(fp8_product(a, b, GetParam().dtype), expected), 5e-3);
  const at::Tensor sum = at::zeros({256, 256}, a.scale.options());
  fp8_add_product(sum, a, b);
  EXPECT_LE(relative_error(sum, expected), 5e-3) << "added to fp32";
}

TEST(Fp8Rounding, TheTwinRoundsToWhatE4m3Has) {
  std::vector<double> has;  // every number of e4m3 that is not negative
  for (int code = 0; code < 127; ++code) {
    const int exponent = code >> 3, fraction = code & 7;
    has.push_back(exponent == 0 ? std::ldexp(fraction, -9)
                                : std::ldexp(8 + fraction, exponent - 10));
  }
  EXPECT_EQ(has.back(), 448);
  for (size_t i = 0; i < has.size(); ++i) {
    EXPECT_EQ(round_to_e4m3(has[i]), has[i]);
    EXPECT_EQ(round_to_e4m3(-has[i]), -has[i]);
    if (i + 1 == has.size()) break;
    const double middle = (has[i] + has[i + 1]) / 2, bit = middle * 1e-9;
    EXPECT_EQ(round_to_e4m3(middle), has[i % 2 == 0 ? i : i + 1]) << "a tie goes to the even one";
    EXPECT_EQ(round_to_e4m3(middle - bit), has[i]);
    EXPECT_EQ(round_to_e4m3(middle + bit), has[i + 1]);
  }
}

TEST(Fp8Rounding, WhatIsNoOperandIsRefused) {
  EXPECT_THROW(fp8_rows(at::zeros({3})), c10::Error);
  EXPECT_THROW(fp8_rows(at::zeros({0, 3})), c10::Error);
  EXPECT_THROW(fp8_columns(at::zeros({4, 3}).t()), c10::Error);
  EXPECT_THROW(fp8_rows(at::zeros({3, 3}, at::kInt)), c10::Error);
  const Fp8Rows a = fp8_rows(at::ones({3, 4})), b = fp8_rows(at::ones({3, 5}));
  EXPECT_THROW(fp8_product(a, b, at::kFloat), c10::Error);
  EXPECT_THROW(fp8_add_product(at::zeros({3, 3}), a, b), c10::Error);
  EXPECT_THROW(fp8_add_product(at::zeros({3, 4}), a, a), c10::Error);
  EXPECT_THROW(fp8_add_product(at::zeros({3, 3}, at::kHalf), a, a), c10::Error);
  EXPECT_THROW(fp8_rows_and_columns(at::zeros({0, 3})), c10::Error);
}

INSTANTIATE_TEST_SUITE_P(Places, Fp8, all_places(), place_name);

}  // namespace
}  // namespace sala::test
