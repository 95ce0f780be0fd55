// The properties that lightning attention has wherever it runs, as checks that the tests of the
// composition (lightning_test.cpp) and of the CUDA kernels (lightning_kernels_test.cpp) call with
// sizes of their own.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/ops.h"
#include "kernels/twins/attention.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {

struct LightningInputs {
  at::Tensor q, k, v, g, initial, d_final;
};

class LightningInPlace : public OpInPlace {
 protected:
  LightningInputs inputs(int64_t T, int64_t D, int64_t NH, int64_t HS, bool states) const {
    LightningInputs x{
        random({T, NH, HS}), random({T, NH, HS}), random({T, NH, HS}), random({T, NH, HS}), {}, {}};
    if (states) {
      x.initial = random_wide({D, NH, HS, HS});
      x.d_final = random_wide({D, NH, HS, HS});
    }
    return x;
  }

  // In bf16 the bar is relative 5e-3 for the output and every gradient.
  Tolerance limit() const {
    Tolerance t = tolerance(GetParam().dtype);
    if (GetParam().dtype == at::kBFloat16) t.relative_norm = 5e-3;
    return t;
  }

  void expect_forward(const LightningInputs& x, const DocumentCase& c, const at::Tensor& slopes,
                      double scale) {
    const Documents docs = c.on(device()), host = c.on(at::kCPU);
    const auto [o, state] = lightning_forward(x.q, x.k, x.v, slopes, docs, scale, x.initial);
    const auto [o_twin, state_twin] = lightning_forward_twin(exact(x.q), exact(x.k), exact(x.v),
                                                             slopes, host, scale, exact(x.initial));
    EXPECT_EQ(o.scalar_type(), GetParam().dtype);
    EXPECT_TRUE(close(o, o_twin, limit())) << "o";
    EXPECT_TRUE(close(state, state_twin, limit())) << "final_state";
    const auto [o_alone, no_state] = lightning_forward(x.q, x.k, x.v, slopes, docs, scale,
                                                       x.initial, /*want_final_state=*/false);
    EXPECT_TRUE(bit_equal(o_alone, o));
    EXPECT_FALSE(no_state.defined());
  }

  void expect_backward(const LightningInputs& x, const DocumentCase& c, const at::Tensor& slopes,
                       double scale) {
    const auto [dq, dk, dv, d_initial] =
        lightning_backward(x.g, x.q, x.k, x.v, slopes, c.on(device()), scale, x.initial, x.d_final);
    const auto [dq_twin, dk_twin, dv_twin, d_initial_twin] =
        lightning_backward_twin(exact(x.g), exact(x.q), exact(x.k), exact(x.v), slopes,
                                c.on(at::kCPU), scale, exact(x.initial), exact(x.d_final));
    EXPECT_TRUE(close(dq, dq_twin, limit())) << "dq";
    EXPECT_TRUE(close(dk, dk_twin, limit())) << "dk";
    EXPECT_TRUE(close(dv, dv_twin, limit())) << "dv";
    EXPECT_EQ(d_initial.defined(), x.initial.defined());
    if (x.initial.defined()) {
      EXPECT_TRUE(close(d_initial, d_initial_twin, limit())) << "d_initial_state";
    }
  }

  void compare(const DocumentCase& c, int64_t HS, const at::Tensor& slopes, bool states) {
    const int64_t NH = slopes.size(0), D = static_cast<int64_t>(c.starts.size());
    SCOPED_TRACE(::testing::Message()
                 << "T " << c.num_tokens << ", documents " << D << ", heads " << NH << " x " << HS
                 << ", slowest slope " << slopes.min().item<double>() << ", states " << states);
    const LightningInputs x = inputs(c.num_tokens, D, NH, HS, states);
    const double scale = 1 / std::sqrt(static_cast<double>(HS));
    expect_forward(x, c, slopes, scale);
    expect_backward(x, c, slopes, scale);
  }

  // States of the first, or last, documents alone are zero for the others.
  void expect_few_states_are_padded_with_zeros(const DocumentCase& c, int64_t HS) {
    const int64_t D = static_cast<int64_t>(c.starts.size());
    const Documents docs = c.on(device());
    const LightningInputs all = inputs(c.num_tokens, D, 3, HS, true);
    for (int64_t d = 1; d <= D; ++d) {
      LightningInputs few = all, padded = all;
      few.initial = all.initial.narrow(0, 0, d);
      few.d_final = all.d_final.narrow(0, D - d, d);
      padded.initial = all.initial.clone();
      padded.initial.narrow(0, d, D - d).zero_();
      padded.d_final = all.d_final.clone();
      padded.d_final.narrow(0, 0, D - d).zero_();
      const auto results = all_results(few, docs), expected = all_results(padded, docs);
      for (size_t i = 0; i < results.size(); ++i) {
        const at::Tensor part = expected[i].narrow(0, 0, results[i].size(0));
        EXPECT_TRUE(bit_equal(results[i], part)) << d << " documents, result " << i;
      }
    }
  }

  void expect_two_calls_equal_one(int64_t T, int64_t HS, const at::Tensor& slopes,
                                  const std::vector<int64_t>& cuts) {
    const LightningInputs x = inputs(T, 1, slopes.size(0), HS, false);
    const auto run = [&](int64_t begin, int64_t end, const at::Tensor& state) {
      return lightning_forward(x.q.slice(0, begin, end), x.k.slice(0, begin, end),
                               x.v.slice(0, begin, end), slopes,
                               Documents::single(end - begin, device()), 0.2, state);
    };
    const auto [o, state] = run(0, T, {});
    for (const int64_t cut : cuts) {
      const auto [o_head, state_head] = run(0, cut, {});
      const auto [o_tail, state_tail] = run(cut, T, state_head);
      EXPECT_TRUE(close(at::cat({o_head, o_tail}), exact(o), limit())) << cut;
      EXPECT_TRUE(close(state_tail, exact(state), limit())) << cut;
    }
  }

  // Output, gradients and, where the inputs have them, the state's.
  std::vector<at::Tensor> all_results(const LightningInputs& x, const Documents& docs) const {
    const at::Tensor slopes = lightning_slopes(x.q.size(1));
    const auto [o, state] = lightning_forward(x.q, x.k, x.v, slopes, docs, 0.2, x.initial);
    const auto [dq, dk, dv, d_initial] =
        lightning_backward(x.g, x.q, x.k, x.v, slopes, docs, 0.2, x.initial, x.d_final);
    std::vector<at::Tensor> results{o, dq, dk, dv};
    if (x.initial.defined()) results.insert(results.end(), {state, d_initial});
    return results;
  }

  void expect_same_bits_twice(const DocumentCase& c, int64_t HS) {
    const int64_t D = static_cast<int64_t>(c.starts.size());
    const LightningInputs x = inputs(c.num_tokens, D, 3, HS, true);
    const auto a = all_results(x, c.on(device())), b = all_results(x, c.on(device()));
    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(bit_equal(a[i], b[i])) << HS << " " << i;
  }

  void expect_documents_apart(int64_t HS) {
    const Documents docs = Documents::from_starts({0, 50, 130, 131, 640}, 700, device());
    LightningInputs x = inputs(700, docs.count(), 3, HS, false);
    const auto before = all_results(x, docs);
    for (at::Tensor* t : {&x.q, &x.k, &x.v}) t->slice(0, 131, 640).mul_(-3).add_(1);
    const auto after = all_results(x, docs);
    for (size_t i = 0; i < before.size(); ++i) {
      EXPECT_TRUE(bit_equal(before[i].slice(0, 0, 131), after[i].slice(0, 0, 131))) << i;
      EXPECT_TRUE(bit_equal(before[i].slice(0, 640), after[i].slice(0, 640))) << i;
      EXPECT_FALSE(at::equal(before[i], after[i])) << i;
    }
  }

  // The first and the last token of a document that begins and ends inside tiles; others beside it
  // are cut at every place of a tile that matters.
  void expect_not_finite_stays(int64_t HS, int64_t more_tokens) {
    const int64_t begin = 70, end = 200, T = 330 + more_tokens;
    const Documents docs = Documents::from_starts({0, begin, end, 201, 264, 264 + 65}, T, device());
    const LightningInputs x = inputs(T, docs.count(), 3, HS, true);
    const auto before = all_results(x, docs);
    // Which results (o, dq, dk, dv, final_state, d_initial_state) each of q, k, v and g enters.
    const std::vector<std::vector<size_t>> enters{
        {0, 2, 3, 5}, {0, 1, 3, 4}, {0, 1, 2, 4}, {1, 2, 3, 5}};
    for (size_t i = 0; i < enters.size(); ++i) {
      for (const auto& [token, value] :
           std::vector<std::pair<int64_t, double>>{{begin, HUGE_VAL}, {end - 1, NAN}}) {
        LightningInputs bad = x;
        at::Tensor& changed = *std::vector<at::Tensor*>{&bad.q, &bad.k, &bad.v, &bad.g}[i];
        changed = changed.clone();
        changed[token].fill_(value);
        const auto after = all_results(bad, docs);
        for (const size_t n : enters[i]) {
          SCOPED_TRACE(::testing::Message()
                       << "HS " << HS << ", "
                       << "qkvg"[i] << "[" << token << "] = " << value << ", result " << n);
          const bool state = n >= 4;  // one row per document, not per token
          expect_stays_between(before[n], after[n], state ? 1 : begin, state ? 2 : end);
        }
      }
    }
  }
};

}  // namespace sala::test
