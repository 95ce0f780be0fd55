// Dense causal attention over packed documents: op against twin, gradients, isolation of documents,
// fewer queries than keys.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "kernels/attention/dense_flash.h"
#include "kernels/ops.h"
#include "kernels/paths.h"
#include "kernels/twins/twins.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

struct Shape {
  int64_t NH, NKV, HS;
};

struct Packed {
  DocumentCase queries, keys;
};

const std::vector<DocumentCase> kSame = {
    {{0}, 1}, {{0}, 3}, {{0}, 129}, {{0, 1, 4, 21}, 90}, {{0, 64}, 128}};
const std::vector<Packed> kFewerQueries = {
    {{{0}, 1}, {{0}, 17}},
    {{{0, 1, 4}, 9}, {{0, 1, 20}, 71}},   // one document with as many queries as keys
    {{{0, 1, 2}, 3}, {{0, 5, 70}, 75}}};  // one query per document, as decoding has

class DenseAttention : public OpInPlace {
 protected:
  void compare(const DocumentCase& queries, const DocumentCase& keys, const Shape& s) {
    SCOPED_TRACE(::testing::Message() << "Tq " << queries.num_tokens << ", Tk " << keys.num_tokens
                                      << ", heads " << s.NH << "/" << s.NKV << " x " << s.HS);
    const Documents q_docs = queries.on(device()), k_docs = keys.on(device());
    const Documents q_host = queries.on(at::kCPU), k_host = keys.on(at::kCPU);
    const double scale = 1 / std::sqrt(static_cast<double>(s.HS));
    const at::Tensor q = random({queries.num_tokens, s.NH, s.HS}),
                     k = random({keys.num_tokens, s.NKV, s.HS}),
                     v = random({keys.num_tokens, s.NKV, s.HS}), d_o = random(q.sizes());
    const auto [o, lse] = dense_attention_forward(q, k, v, q_docs, k_docs, scale);
    const auto [o_twin, lse_twin] = dense_attention_forward_twin(q, k, v, q_host, k_host, scale);
    EXPECT_EQ(o.scalar_type(), q.scalar_type());
    EXPECT_TRUE(close(o, o_twin)) << "o";
    EXPECT_TRUE(close(lse, lse_twin, tolerance(lse.scalar_type()))) << "lse";
    const auto [dq, dk, dv] = dense_attention_backward(d_o, q, k, v, o, lse, q_docs, k_docs, scale);
    const auto [dq_twin, dk_twin, dv_twin] =
        dense_attention_backward_twin(d_o, q, k, v, o_twin, lse_twin, q_host, k_host, scale);
    EXPECT_TRUE(close(dq, dq_twin)) << "dq";
    EXPECT_TRUE(close(dk, dk_twin)) << "dk";
    EXPECT_TRUE(close(dv, dv_twin)) << "dv";
    const auto [dq_again, dk_again, dv_again] =
        dense_attention_backward(d_o, q, k, v, o, lse, q_docs, k_docs, scale);
    EXPECT_TRUE(bit_equal(dq, dq_again)) << "dq is deterministic";
    EXPECT_TRUE(bit_equal(dk, dk_again)) << "dk is deterministic";
    EXPECT_TRUE(bit_equal(dv, dv_again)) << "dv is deterministic";
  }
};

TEST_P(DenseAttention, EqualsTwin) {
  for (const Shape& s : {Shape{1, 1, 32}, Shape{9, 3, 64}, Shape{4, 4, 32}, Shape{6, 1, 128}}) {
    for (const DocumentCase& c : kSame) compare(c, c, s);
  }
}

TEST_P(DenseAttention, WithFewerQueriesThanKeysEqualsTwin) {
  for (const Shape& s : {Shape{2, 2, 32}, Shape{6, 2, 64}}) {
    for (const Packed& c : kFewerQueries) compare(c.queries, c.keys, s);
  }
}

TEST_P(DenseAttention, OfADocumentDoesNotDependOnItsNeighbours) {
  const DocumentCase c{{0, 13, 40}, 77};
  const Documents docs = c.on(device());
  const at::Tensor q = random({77, 4, 32}), k = random({77, 2, 32}), v = random({77, 2, 32}),
                   d_o = random({77, 4, 32});
  at::Tensor q2 = q.clone(), k2 = k.clone(), v2 = v.clone(), d_o2 = d_o.clone();
  for (at::Tensor* x : {&q2, &k2, &v2, &d_o2}) x->narrow(0, 13, 27).mul_(3).add_(1);
  const auto [o, lse] = dense_attention_forward(q, k, v, docs, docs, 0.2);
  const auto [o2, lse2] = dense_attention_forward(q2, k2, v2, docs, docs, 0.2);
  const auto [dq, dk, dv] = dense_attention_backward(d_o, q, k, v, o, lse, docs, docs, 0.2);
  const auto [dq2, dk2, dv2] =
      dense_attention_backward(d_o2, q2, k2, v2, o2, lse2, docs, docs, 0.2);
  for (const auto& [begin, n] : std::vector<std::pair<int64_t, int64_t>>{{0, 13}, {40, 37}}) {
    EXPECT_TRUE(bit_equal(o.narrow(0, begin, n), o2.narrow(0, begin, n)));
    EXPECT_TRUE(bit_equal(dq.narrow(0, begin, n), dq2.narrow(0, begin, n)));
    EXPECT_TRUE(bit_equal(dk.narrow(0, begin, n), dk2.narrow(0, begin, n)));
    EXPECT_TRUE(bit_equal(dv.narrow(0, begin, n), dv2.narrow(0, begin, n)));
  }
}

// On a GPU documents of one round length are cuDNN's then, the others the flash kernel's.
TEST_P(DenseAttention, InAnyOrderAgreesWithTheFixedOrder) {
  for (const DocumentCase& c : {DocumentCase{{0, 40}, 300},
                                {{0}, 2048},
                                {{0, 3072}, 6144},
                                {{0, 2048, 4096}, 6144},
                                {{0, 2048}, 5120}}) {
    if (!device().is_cuda() && c.num_tokens > 300) continue;  // the same code there
    SCOPED_TRACE(::testing::Message() << c.num_tokens << " tokens");
    const Documents docs = c.on(device());
    const at::Tensor q = random({c.num_tokens, 6, 64}), k = random({c.num_tokens, 2, 64}),
                     v = random(k.sizes()), d_o = random(q.sizes());
    const auto run = [&]() -> std::vector<at::Tensor> {
      const auto [o, lse] = dense_attention_forward(q, k, v, docs, docs, 0.125);
      const auto [dq, dk, dv] = dense_attention_backward(d_o, q, k, v, o, lse, docs, docs, 0.125);
      return {o, dq, dk, dv, lse};
    };
    const std::vector<at::Tensor> fixed = run();
    PathRules before = set_path_rules({.deterministic = false});
    const std::vector<at::Tensor> any = run();
    set_path_rules(std::move(before));
    for (size_t i = 0; i < fixed.size(); ++i) {
      EXPECT_TRUE(any[i].is_contiguous());
      EXPECT_TRUE(close(any[i], fixed[i])) << "result " << i;
    }
  }
}

// On a GPU documents of one round length are cuDNN's, the others the flash kernel's.
TEST_P(DenseAttention, OutputAloneIsThatOfTheForward) {
  const std::vector<std::tuple<int64_t, int64_t, int64_t>> heads{{4, 2, 64}, {6, 1, 128}};
  for (const auto& [NH, NKV, HS] : heads) {
    for (const DocumentCase& c : {DocumentCase{{0}, 129},
                                  {{0, 1, 4, 21}, 90},
                                  {{0, 500}, 2048},
                                  {{0}, 2048},
                                  {{0, 2048}, 4096},
                                  {{0, 3072}, 5120}}) {
      if (!device().is_cuda() && c.num_tokens > 129) continue;  // the same code there
      SCOPED_TRACE(::testing::Message()
                   << c.num_tokens << " x " << NH << "/" << NKV << " x " << HS);
      const Documents docs = c.on(device());
      const at::Tensor q = random({c.num_tokens, NH, HS}), k = random({c.num_tokens, NKV, HS}),
                       v = random(k.sizes());
      const at::Tensor alone = dense_attention_output(q, k, v, docs, docs, 0.1);
      EXPECT_TRUE(alone.is_contiguous());
      EXPECT_TRUE(close(alone, std::get<0>(dense_attention_forward(q, k, v, docs, docs, 0.1))));
      EXPECT_TRUE(bit_equal(alone, dense_attention_output(q, k, v, docs, docs, 0.1)));
    }
  }
}

TEST_P(DenseAttention, WhatIsNotFiniteStaysInItsDocument) {
  const int64_t T = 330, begin = 70, end = 200;
  const Documents docs = DocumentCase{{0, begin, end}, T}.on(device());
  const std::vector<at::Tensor> x{random({T, 4, 64}), random({T, 2, 64}), random({T, 2, 64}),
                                  random({T, 4, 64})};  // q, k, v, d_o
  const auto run = [&](const std::vector<at::Tensor>& y) -> std::vector<at::Tensor> {
    const auto [o, lse] = dense_attention_forward(y[0], y[1], y[2], docs, docs, 0.2);
    const auto [dq, dk, dv] =
        dense_attention_backward(y[3], y[0], y[1], y[2], o, lse, docs, docs, 0.2);
    return {dq, dk, dv, o};
  };
  const std::vector<at::Tensor> before = run(x);
  for (size_t i = 0; i < x.size(); ++i) {
    for (const auto& [token, value] :
         std::vector<std::pair<int64_t, double>>{{begin, HUGE_VAL}, {end - 1, NAN}}) {
      std::vector<at::Tensor> bad = x;
      bad[i] = x[i].clone();
      bad[i][token].fill_(value);
      const std::vector<at::Tensor> after = run(bad);
      for (size_t n = 0; n < after.size(); ++n) {
        // v does not enter dv, and d_o not o.
        if ((i == 2 && n == 2) || (i == 3 && n == 3)) continue;
        SCOPED_TRACE(::testing::Message()
                     << "input " << i << "[" << token << "] = " << value << ", result " << n);
        expect_stays_between(before[n], after[n], begin, end);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Places, DenseAttention, all_places(), place_name);

TEST(DenseAttentionGradient, IsTheFiniteDifference) {
  at::manual_seed(5);
  for (const Packed& c : {Packed{{{0, 3}, 9}, {{0, 3}, 9}}, Packed{{{0, 2}, 5}, {{0, 4}, 11}}}) {
    const Documents q_docs = c.queries.on(at::kCPU), k_docs = c.keys.on(at::kCPU);
    const auto random = [](at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); };
    const at::Tensor q = random({q_docs.num_tokens(), 4, 8}),
                     k = random({k_docs.num_tokens(), 2, 8}), v = random(k.sizes()),
                     d_o = random(q.sizes());
    const auto loss = [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& e) {
      const auto o = std::get<0>(dense_attention_forward(a, b, e, q_docs, k_docs, 0.4));
      return (o * d_o).sum().item<double>();
    };
    const auto [o, lse] = dense_attention_forward(q, k, v, q_docs, k_docs, 0.4);
    const auto [dq, dk, dv] = dense_attention_backward(d_o, q, k, v, o, lse, q_docs, k_docs, 0.4);
    expect_gradient([&](const at::Tensor& a) { return loss(a, k, v); }, q, dq, "dq");
    expect_gradient([&](const at::Tensor& a) { return loss(q, a, v); }, k, dk, "dk");
    expect_gradient([&](const at::Tensor& a) { return loss(q, k, a); }, v, dv, "dv");
  }
}

TEST(DenseAttentionSlabs, MeetWithoutASeam) {
  // Long enough that the scores of the 2,001 queries do not fit one slab.
  at::manual_seed(6);
  const Documents q_docs = Documents::single(2001, at::kCPU), one = Documents::single(1, at::kCPU);
  const Documents k_docs = Documents::single(4099, at::kCPU);
  const at::Tensor q = at::randn({2001, 4, 32}), k = at::randn({4099, 2, 32}),
                   v = at::randn({4099, 2, 32});
  const auto [o, lse] = dense_attention_forward(q, k, v, q_docs, k_docs, 0.2);
  for (int64_t i : {0, 1, 1021, 1022, 1023, 1024, 1025, 2000}) {
    const int64_t seen = 4099 - 2001 + i + 1;
    const auto [row, row_lse] =
        dense_attention_forward(q.narrow(0, i, 1), k.narrow(0, 0, seen), v.narrow(0, 0, seen), one,
                                Documents::single(seen, at::kCPU), 0.2);
    EXPECT_TRUE(close(o.narrow(0, i, 1), row)) << "query " << i;
    EXPECT_TRUE(close(lse.narrow(1, i, 1), row_lse)) << "query " << i;
  }
}

// What is too large for one call goes in documents, a long one in heads.
TEST(DenseFlashCuda, PiecesMakeTheWhole) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  at::manual_seed(7);
  const auto options = at::device(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor q = at::randn({700, 8, 64}, options), k = at::randn({700, 4, 64}, options),
                   v = at::randn(k.sizes(), options), d_o = at::randn(q.sizes(), options);
  const Documents docs = Documents::from_starts({0, 9, 50, 80, 580, 590}, 700, at::kCUDA);
  const auto run = [&](int64_t most) -> std::vector<at::Tensor> {
    const auto [o, lse] = dense_flash_forward(q, k, v, docs, docs, 0.125, most);
    const DenseGradients d =
        dense_flash_backward(d_o, q, k, v, o, lse, docs, docs, 0.125, true, most);
    return {o, lse, d.dq, d.dk, d.dv};
  };
  const std::vector<at::Tensor> whole = run(kFlashElements);
  for (const int64_t tokens : {900, 400, 100, 1}) {
    const std::vector<at::Tensor> pieces = run(tokens * q.size(1) * q.size(2));
    for (size_t i = 0; i < whole.size(); ++i) {
      EXPECT_TRUE(close(pieces[i], whole[i])) << "result " << i << ", " << tokens << " tokens";
    }
  }
}

TEST(DenseAttentionDoor, SaysWhatWasExpectedAndWhatCame) {
  const Documents docs = Documents::single(4, at::kCPU);
  const at::Tensor x = at::zeros({4, 3, 8});
  EXPECT_THROW(
      dense_attention_forward(x, at::zeros({4, 2, 8}), at::zeros({4, 2, 8}), docs, docs, 1),
      c10::Error);
  EXPECT_THROW(dense_attention_forward(x, x, x, docs, Documents::single(3, at::kCPU), 1),
               c10::Error);
}

}  // namespace
}  // namespace sala::test
