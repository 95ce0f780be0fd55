// rmsnorm with and without a residual sum, QK-norm with rotation, swiglu and the gated norm: op
// against twin in every place, and gradients against central differences in fp64.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/ops.h"
#include "kernels/twins/twins.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

constexpr double kEps = 1e-6;

class Elementwise : public OpInPlace {};

TEST_P(Elementwise, RmsnormEqualsTwin) {
  for (const auto& [rows, C] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {1, 3}, {3, 17}, {17, 64}, {5, 577}, {130, 33}, {3, 4096}, {2, 20000}}) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << C);
    const at::Tensor x = random({rows, C}), w = random({C}), dy = random({rows, C});
    const auto [y, rstd] = rmsnorm_forward(x, w, kEps);
    const auto [y_twin, rstd_twin] = rmsnorm_forward_twin(x, w, kEps);
    EXPECT_EQ(y.scalar_type(), x.scalar_type());
    EXPECT_TRUE(close(y, y_twin));
    EXPECT_TRUE(close(rstd, rstd_twin));
    const auto [dx, dw] = rmsnorm_backward(dy, x, w, rstd);
    const auto [dx_twin, dw_twin] = rmsnorm_backward_twin(dy, x, w, rstd_twin);
    EXPECT_TRUE(close(dx, dx_twin)) << "dx";
    EXPECT_TRUE(close(dw, dw_twin)) << "dweight";
  }
}

TEST_P(Elementwise, RmsnormTakesAnyLeadingDimensions) {
  const at::Tensor x = random({3, 5, 17}), w = random({17});
  const auto [y, rstd] = rmsnorm_forward(x, w, kEps);
  const auto [y_flat, rstd_flat] = rmsnorm_forward(x.view({15, 17}), w, kEps);
  EXPECT_TRUE(bit_equal(y.view({15, 17}), y_flat));
  EXPECT_TRUE(bit_equal(rstd.view({15}), rstd_flat));
}

TEST_P(Elementwise, AddRmsnormEqualsTwin) {
  constexpr double kScale = 0.22;
  for (const auto& [rows, C] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {3, 17}, {5, 577}, {130, 33}, {19, 576}, {7, 2048}}) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << C);
    const at::Tensor x = random({rows, C}), y = random({rows, C}), w = random({C});
    const at::Tensor du = random({rows, C}), dh = random({rows, C});
    const auto [h, u, rstd] = add_rmsnorm_forward(x, y, kScale, w, kEps);
    const at::Tensor h_twin = std::get<0>(add_rmsnorm_forward_twin(x, y, kScale, w, kEps));
    const auto [u_twin, rstd_twin] = rmsnorm_forward_twin(h, w, kEps);  // of h as it was rounded
    EXPECT_EQ(h.scalar_type(), x.scalar_type());
    EXPECT_TRUE(close(h, h_twin)) << "h";
    EXPECT_TRUE(close(u, u_twin)) << "u";
    EXPECT_TRUE(close(rstd, rstd_twin)) << "rstd";
    for (const at::Tensor& d : {dh, at::Tensor()}) {
      const auto [dx, dw] = add_rmsnorm_backward(du, d, h, w, rstd);
      const auto [dx_twin, dw_twin] = add_rmsnorm_backward_twin(du, d, h, w, rstd);
      EXPECT_TRUE(close(dx, dx_twin)) << "dx";
      EXPECT_TRUE(close(dw, dw_twin)) << "dweight";
    }
  }
}

TEST_P(Elementwise, AddRmsnormIsTheSumThenTheNorm) {
  const at::Tensor x = random({33, 576}), y = random({33, 576}), w = random({576});
  const auto [h, u, rstd] = add_rmsnorm_forward(x, y, 1.0, w, kEps);
  EXPECT_TRUE(bit_equal(h, x + y));
  const auto [u_alone, rstd_alone] = rmsnorm_forward(h, w, kEps);
  EXPECT_TRUE(bit_equal(u, u_alone));
  EXPECT_TRUE(bit_equal(rstd, rstd_alone));
}

// Weight gradients are sums over all rows; more rows than the chip holds at once.
TEST_P(Elementwise, TheSameBitsEveryTime) {
  const at::Tensor x = random({2500, 64}), dy = random({2500, 64}), w = random({64});
  const at::Tensor z = random({2500, 64}), q = random({1250, 2, 64}), dq = random({1250, 2, 64});
  const at::Tensor angle = random_wide({1250, 32}), cos = angle.cos(), sin = angle.sin();
  const auto all = [&] {
    const auto [h, u, rstd] = add_rmsnorm_forward(x, z, 1.0, w, kEps);
    const auto [dx, dw] = add_rmsnorm_backward(dy, x, h, w, rstd);
    const auto [y, gate_rstd] = gated_norm_forward(x, z, w, kEps);
    const auto [d_o, dz, d_gate] = gated_norm_backward(dy, x, z, w, gate_rstd);
    const auto [r, rope_rstd] = qk_norm_rope_forward(q, w, cos, sin, kEps);
    const auto [dr, d_head] = qk_norm_rope_backward(dq, q, w, rope_rstd, cos, sin);
    return std::vector<at::Tensor>{h, u, dx, dw, y, d_o, dz, d_gate, r, dr, d_head};
  };
  const auto first = all(), second = all();
  for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(bit_equal(first[i], second[i])) << i;
  const auto [dx, dw] = rmsnorm_backward(dy, x, w, std::get<1>(rmsnorm_forward(x, w, kEps)));
  const at::Tensor rstd = std::get<1>(rmsnorm_forward_twin(x, w, kEps));
  const at::Tensor head_rstd = std::get<1>(qk_norm_rope_forward_twin(q, w, cos, sin, kEps));
  EXPECT_TRUE(close(dw, std::get<1>(rmsnorm_backward_twin(dy, x, w, rstd)))) << "norm";
  EXPECT_TRUE(close(first[7], std::get<2>(gated_norm_backward_twin(dy, x, z, w, rstd)),
                    tolerance(GetParam().dtype)))
      << "gate";
  EXPECT_TRUE(
      close(first[10], std::get<1>(qk_norm_rope_backward_twin(dq, q, w, head_rstd, cos, sin))))
      << "head";
}

TEST_P(Elementwise, WhatIsNotFiniteStaysInItsRow) {
  const int64_t rows = 37, bad_row = 18;
  const at::Tensor w = random({64}), angle = random_wide({rows, 32});
  const at::Tensor cos = angle.cos(), sin = angle.sin();
  const auto run = [&](const at::Tensor& x, const at::Tensor& y) {
    const auto [h, u, rstd] = add_rmsnorm_forward(x, y, 1.0, w, kEps);
    const auto [dx, dw] = add_rmsnorm_backward(y, x, h, w, rstd);
    const auto [gated, gate_rstd] = gated_norm_forward(x, y, w, kEps);
    const auto [d_o, dz, d_gate] = gated_norm_backward(y, x, y, w, gate_rstd);
    const auto [norm, norm_rstd] = rmsnorm_forward(x, w, kEps);
    const auto [d_norm, d_norm_w] = rmsnorm_backward(y, x, w, norm_rstd);
    const at::Tensor heads = x.view({rows, 1, 64});
    const auto [turned, head_rstd] = qk_norm_rope_forward(heads, w, cos, sin, kEps);
    const auto [d_head, d_head_w] =
        qk_norm_rope_backward(y.view_as(heads), heads, w, head_rstd, cos, sin);
    const auto [d_swish, d_up] = swiglu_backward(y, x, x);
    return std::vector<at::Tensor>{
        h,       u,   dx, gated, d_o, dz, norm, d_norm, turned, d_head, swiglu_forward(x, x),
        d_swish, d_up};
  };
  const at::Tensor x = random({rows, 64}), y = random({rows, 64});
  at::Tensor bad = x.clone();
  bad[bad_row].fill_(NAN);
  const auto before = run(x, y), after = run(bad, y);
  for (size_t i = 0; i < before.size(); ++i) {
    SCOPED_TRACE(i);
    expect_stays_between(before[i], after[i], bad_row, bad_row + 1);
  }
}

// Views that begin between two 16-byte boundaries give what their copies give.
TEST_P(Elementwise, TakesAnyAlignment) {
  const auto shifted = [&](const at::Tensor& t) {
    const at::Tensor room = at::empty({t.numel() + 1}, t.options());
    return room.narrow(0, 1, t.numel()).view(t.sizes()).copy_(t);
  };
  const at::Tensor x = random({33, 64}), y = random({33, 64}), w = random({64});
  const auto [h, u, rstd] = add_rmsnorm_forward(x, y, 1.0, w, kEps);
  const auto [h_other, u_other, rstd_other] =
      add_rmsnorm_forward(shifted(x), shifted(y), 1.0, shifted(w), kEps);
  EXPECT_TRUE(close(u_other, u));
  EXPECT_TRUE(close(swiglu_forward(shifted(x), y), swiglu_forward(x, y)));
  EXPECT_TRUE(close(std::get<0>(gated_norm_forward(x, shifted(y), w, kEps)),
                    std::get<0>(gated_norm_forward(x, y, w, kEps))));
  const at::Tensor heads = x.view({33, 2, 32}), weight = w.narrow(0, 0, 32);
  EXPECT_TRUE(close(std::get<0>(qk_norm_rope_forward(shifted(heads), weight, {}, {}, kEps)),
                    std::get<0>(qk_norm_rope_forward(heads, weight, {}, {}, kEps))));
}

TEST_P(Elementwise, QkNormRopeEqualsTwin) {
  for (const auto& [T, N, HS] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 2}, {3, 1, 6}, {17, 3, 32}, {5, 9, 64}, {2, 2, 128}, {2, 5, 96}, {2, 1, 1024}}) {
    for (int parts = 0; parts < 4; ++parts) {
      SCOPED_TRACE(::testing::Message() << T << " x " << N << " x " << HS << ", parts " << parts);
      const at::Tensor x = random({T, N, HS}), dy = random({T, N, HS});
      const at::Tensor w = parts & 1 ? random({HS}) : at::Tensor();
      const at::Tensor angle = random_wide({T, HS / 2});
      const at::Tensor cos = parts & 2 ? angle.cos() : at::Tensor();
      const at::Tensor sin = parts & 2 ? angle.sin() : at::Tensor();
      const auto [y, rstd] = qk_norm_rope_forward(x, w, cos, sin, kEps);
      const auto [y_twin, rstd_twin] = qk_norm_rope_forward_twin(x, w, cos, sin, kEps);
      EXPECT_TRUE(close(y, y_twin));
      EXPECT_TRUE(close(rstd, rstd_twin));
      const auto [dx, dw] = qk_norm_rope_backward(dy, x, w, rstd, cos, sin);
      const auto [dx_twin, dw_twin] = qk_norm_rope_backward_twin(dy, x, w, rstd_twin, cos, sin);
      EXPECT_TRUE(close(dx, dx_twin)) << "dx";
      EXPECT_TRUE(close(dw, dw_twin)) << "dweight";
    }
  }
}

TEST_P(Elementwise, SwigluEqualsTwin) {
  for (int64_t F : {1, 3, 17, 1000, 3001}) {
    const at::Tensor gate = random({3, F}), up = random({3, F}), dy = random({3, F});
    EXPECT_TRUE(close(swiglu_forward(gate, up), swiglu_forward_twin(gate, up)));
    const auto [dgate, dup] = swiglu_backward(dy, gate, up);
    const auto [dgate_twin, dup_twin] = swiglu_backward_twin(dy, gate, up);
    EXPECT_TRUE(close(dgate, dgate_twin)) << "dgate";
    EXPECT_TRUE(close(dup, dup_twin)) << "dup";
  }
}

TEST_P(Elementwise, GatedNormEqualsTwin) {
  for (int64_t C : {1, 3, 17, 576}) {
    for (bool norm : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "C " << C << ", norm " << norm);
      const at::Tensor o = random({5, C}), z = random({5, C}), dy = random({5, C});
      const at::Tensor w = norm ? random({C}) : at::Tensor();
      const auto [y, rstd] = gated_norm_forward(o, z, w, kEps);
      const auto [y_twin, rstd_twin] = gated_norm_forward_twin(o, z, w, kEps);
      EXPECT_TRUE(close(y, y_twin));
      EXPECT_TRUE(close(rstd, rstd_twin));
      const auto [d_o, dz, dw] = gated_norm_backward(dy, o, z, w, rstd);
      const auto [d_o_twin, dz_twin, dw_twin] = gated_norm_backward_twin(dy, o, z, w, rstd_twin);
      EXPECT_TRUE(close(d_o, d_o_twin)) << "do";
      EXPECT_TRUE(close(dz, dz_twin)) << "dz";
      // The composition rounds the gradient of the norm to the rows' type on its way.
      EXPECT_TRUE(close(dw, dw_twin, tolerance(GetParam().dtype))) << "dweight";
    }
  }
}

// Columns of a wider tensor give what their copies give, and gradients go to columns
// without touching what lies beside them.
TEST_P(Elementwise, TakesAndFillsColumns) {
  // Widths and first columns of whole chunks of 16 bytes, and others.
  for (const auto& [T, N, HS, before] : std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>>{
           {33, 2, 32, 64}, {300, 9, 64, 16}, {5, 3, 6, 5}, {1, 2, 32, 64}, {7, 1, 34, 64}}) {
    SCOPED_TRACE(::testing::Message() << T << " x " << N << " x " << HS << " after " << before);
    const int64_t C = N * HS, width = before + 2 * C + 8;
    const at::Tensor wide = random({T, width});
    const at::Tensor first = wide.narrow(1, before, C), second = wide.narrow(1, before + C, C);
    const at::Tensor a = first.contiguous(), b = second.contiguous(), dy = random({T, C});
    const auto empty = [&] { return at::full({T, width}, 7, wide.options()); };
    const auto expect_filled = [&](const at::Tensor& out, const std::vector<at::Tensor>& parts) {
      at::Tensor beside = out.clone();
      for (size_t i = 0; i < parts.size(); ++i) {
        const int64_t begin = before + static_cast<int64_t>(i) * C;
        EXPECT_TRUE(close(out.narrow(1, begin, C).contiguous(), parts[i].view({T, C})));
        beside.narrow(1, begin, C).fill_(7);
      }
      EXPECT_TRUE(beside.eq(7).all().item<bool>());
    };

    EXPECT_TRUE(close(swiglu_forward(first, second), swiglu_forward(a, b)));
    EXPECT_TRUE(close(swiglu_forward(a, second), swiglu_forward(a, b)));  // one of them dense
    EXPECT_TRUE(close(swiglu_forward(first, b), swiglu_forward(a, b)));
    at::Tensor out = empty();
    swiglu_backward(dy, first, second, out.narrow(1, before, C), out.narrow(1, before + C, C));
    const auto [d_gate, d_up] = swiglu_backward(dy, a, b);
    expect_filled(out, {d_gate, d_up});

    for (const at::Tensor& w : {random({C}), at::Tensor()}) {
      const auto [y, rstd] = gated_norm_forward(a, second, w, kEps);
      EXPECT_TRUE(close(y, std::get<0>(gated_norm_forward(a, b, w, kEps))));
      const auto [d_o, dz, dw] = gated_norm_backward(dy, a, b, w, rstd);
      out = empty();
      const auto [d_o_too, dz_too, dw_too] =
          gated_norm_backward(dy, a, second, w, rstd, out.narrow(1, before, C));
      EXPECT_TRUE(close(d_o, d_o_too) && close(dw, dw_too) && close(dz, dz_too));
      expect_filled(out, {dz_too.contiguous()});
    }

    const auto heads = [&](const at::Tensor& x) { return x.view({T, N, HS}); };
    const at::Tensor angle = random_wide({T, HS / 2});
    for (const at::Tensor& w : {random({HS}), at::Tensor()}) {
      for (const at::Tensor& turn : {angle, at::Tensor()}) {
        const at::Tensor cos = turn.defined() ? turn.cos() : turn;
        const at::Tensor sin = turn.defined() ? turn.sin() : turn;
        const auto [y, rstd] = qk_norm_rope_forward(heads(first), w, cos, sin, kEps);
        EXPECT_TRUE(y.is_contiguous());
        EXPECT_TRUE(close(y, std::get<0>(qk_norm_rope_forward(heads(a), w, cos, sin, kEps))));
        const auto [dx, dw] = qk_norm_rope_backward(heads(dy), heads(a), w, rstd, cos, sin);
        out = empty();
        const auto [dx_too, dw_too] = qk_norm_rope_backward(heads(dy), heads(a), w, rstd, cos, sin,
                                                            heads(out.narrow(1, before, C)));
        EXPECT_TRUE(close(dx_too, dx) && close(dw_too, dw));
        expect_filled(out, {dx_too.contiguous()});
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Places, Elementwise, all_places(), place_name);

class ElementwiseGradient : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(11); }
  static at::Tensor random(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }
  static double inner(const at::Tensor& a, const at::Tensor& b) {
    return (a * b).sum().item<double>();
  }
};

TEST_F(ElementwiseGradient, OfRmsnormIsTheFiniteDifference) {
  const at::Tensor x = random({3, 17}), w = random({17}), dy = random({3, 17});
  const auto loss = [&](const at::Tensor& a, const at::Tensor& b) {
    return inner(std::get<0>(rmsnorm_forward(a, b, kEps)), dy);
  };
  const at::Tensor rstd = std::get<1>(rmsnorm_forward(x, w, kEps));
  const auto [dx, dw] = rmsnorm_backward(dy, x, w, rstd);
  expect_gradient([&](const at::Tensor& a) { return loss(a, w); }, x, dx, "dx");
  expect_gradient([&](const at::Tensor& a) { return loss(x, a); }, w, dw, "dweight");
}

TEST_F(ElementwiseGradient, OfAddRmsnormIsTheFiniteDifference) {
  constexpr double kScale = 0.22;
  const at::Tensor x = random({3, 17}), y = random({3, 17}), w = random({17});
  const at::Tensor du = random({3, 17}), dh = random({3, 17});
  const auto loss = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
    const auto [h, u, rstd] = add_rmsnorm_forward(a, b, kScale, c, kEps);
    return inner(u, du) + inner(h, dh);
  };
  const auto [h, u, rstd] = add_rmsnorm_forward(x, y, kScale, w, kEps);
  const auto [dx, dw] = add_rmsnorm_backward(du, dh, h, w, rstd);
  expect_gradient([&](const at::Tensor& a) { return loss(a, y, w); }, x, dx, "dx");
  expect_gradient([&](const at::Tensor& a) { return loss(x, a, w); }, y, dx * kScale, "dy");
  expect_gradient([&](const at::Tensor& a) { return loss(x, y, a); }, w, dw, "dweight");
}

TEST_F(ElementwiseGradient, OfQkNormRopeIsTheFiniteDifference) {
  const at::Tensor x = random({3, 2, 6}), w = random({6}), dy = random({3, 2, 6});
  const at::Tensor angle = random({3, 3}), cos = angle.cos(), sin = angle.sin();
  const auto loss = [&](const at::Tensor& a, const at::Tensor& b) {
    return inner(std::get<0>(qk_norm_rope_forward(a, b, cos, sin, kEps)), dy);
  };
  const at::Tensor rstd = std::get<1>(qk_norm_rope_forward(x, w, cos, sin, kEps));
  const auto [dx, dw] = qk_norm_rope_backward(dy, x, w, rstd, cos, sin);
  expect_gradient([&](const at::Tensor& a) { return loss(a, w); }, x, dx, "dx");
  expect_gradient([&](const at::Tensor& a) { return loss(x, a); }, w, dw, "dweight");
}

TEST_F(ElementwiseGradient, OfSwigluIsTheFiniteDifference) {
  const at::Tensor gate = random({3, 17}), up = random({3, 17}), dy = random({3, 17});
  const auto [dgate, dup] = swiglu_backward(dy, gate, up);
  expect_gradient([&](const at::Tensor& a) { return inner(swiglu_forward(a, up), dy); }, gate,
                  dgate, "dgate");
  expect_gradient([&](const at::Tensor& a) { return inner(swiglu_forward(gate, a), dy); }, up, dup,
                  "dup");
}

TEST_F(ElementwiseGradient, OfGatedNormIsTheFiniteDifference) {
  for (bool norm : {false, true}) {
    const at::Tensor o = random({3, 17}), z = random({3, 17}), dy = random({3, 17});
    const at::Tensor w = norm ? random({17}) : at::Tensor();
    const auto loss = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
      return inner(std::get<0>(gated_norm_forward(a, b, c, kEps)), dy);
    };
    const at::Tensor rstd = std::get<1>(gated_norm_forward(o, z, w, kEps));
    const auto [d_o, dz, dw] = gated_norm_backward(dy, o, z, w, rstd);
    expect_gradient([&](const at::Tensor& a) { return loss(a, z, w); }, o, d_o, "do");
    expect_gradient([&](const at::Tensor& a) { return loss(o, a, w); }, z, dz, "dz");
    if (norm) expect_gradient([&](const at::Tensor& a) { return loss(o, z, a); }, w, dw, "dweight");
  }
}

TEST(ElementwiseDoor, SaysWhatWasExpectedAndWhatCame) {
  const at::Tensor x = at::zeros({3, 4});
  EXPECT_THROW(rmsnorm_forward(x, at::zeros({5}), kEps), c10::Error);
  EXPECT_THROW(rmsnorm_forward(x.t(), at::zeros({3}), kEps), c10::Error);
  EXPECT_THROW(add_rmsnorm_forward(x, at::zeros({4, 3}), 1.0, at::ones({4}), kEps), c10::Error);
  EXPECT_THROW(swiglu_forward(x, at::zeros({3, 4}, at::kDouble)), c10::Error);
  EXPECT_THROW(swiglu_forward(x.t(), x.t()), c10::Error);
  EXPECT_THROW(
      qk_norm_rope_forward(at::zeros({2, 1, 3}), {}, at::zeros({2, 1}), at::zeros({2, 1}), kEps),
      c10::Error);
}

}  // namespace
}  // namespace sala::test
