// The CUDA kernels of lightning attention against the recurrence: head sizes 64 and 128, documents
// that begin inside tiles and ranges, fast and slow decays, long sequences, decode steps.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/kernels/lightning_cases.h"

namespace sala::test {
namespace {

class LightningStep : public LightningInPlace {};
class LightningKernels : public LightningInPlace {};

TEST_P(LightningKernels, EqualTheRecurrenceForAllDocumentLayouts) {
  const std::vector<DocumentCase> cases = {
      {{0}, 2},     {{0}, 63},      {{0}, 64},
      {{0}, 65},    {{0}, 1000},    {{0, 1}, 2},
      {{0, 1}, 70}, {{0, 64}, 128}, {{0, 60, 61, 130, 131, 195}, 200},
  };
  for (const int64_t HS : {64, 128}) {
    for (const DocumentCase& c : cases) {
      for (const bool states : {false, true}) compare(c, HS, lightning_slopes(3), states);
    }
  }
}

TEST_P(LightningKernels, EqualTheRecurrenceForAllSlopes) {
  for (const int64_t HS : {64, 128}) {
    for (const double factor : {1.0, 1e-3, 0.0, 30.0}) {
      compare({{0, 1000}, 1500}, HS, lightning_slopes(5) * factor, true);
    }
    compare({{0, 70}, 150}, HS, lightning_slopes(32), false);
    compare({{0, 70}, 150}, HS, lightning_slopes(70), true);
  }
}

TEST_P(LightningKernels, EqualTheRecurrenceForLongDocuments) {
  compare({{0}, 16384}, 128, lightning_slopes(2), false);
  compare({{0}, 16384}, 128, lightning_slopes(1) * 1e-2, false);
  compare({{0, 100, 9000}, 16384}, 64, lightning_slopes(3), true);
}

TEST_P(LightningKernels, AMillionTokensAgreeWithTheRecurrenceOnSampledRows) {
  const int64_t T = int64_t{1} << 20, NH = 5, HS = 128, tail = 6144;
  const at::Tensor slopes = lightning_slopes(NH);  // 0.0039 and faster: nothing outlives the tail
  const auto rows = [&] {
    return at::randn({T, NH, HS}, at::TensorOptions(device()).dtype(at::kBFloat16));
  };
  const at::Tensor q = rows(), k = rows(), v = rows(), g = rows();
  const Documents docs = Documents::single(T, device());
  const Documents window = Documents::single(tail, at::kCPU);
  const auto [o, state] = lightning_forward(q, k, v, slopes, docs, 0.1);
  const auto [dq, dk, dv, none] = lightning_backward(g, q, k, v, slopes, docs, 0.1);
  for (const int64_t end : {int64_t{tail}, int64_t{500001}, T}) {
    const auto part = [&](const at::Tensor& x) { return exact(x.slice(0, end - tail, end)); };
    const auto last = [&](const at::Tensor& x) { return x.slice(0, tail - 64, tail); };
    const auto [o_twin, state_twin] =
        lightning_forward_twin(part(q), part(k), part(v), slopes, window, 0.1);
    EXPECT_TRUE(close(last(part(o)), last(o_twin), limit())) << end;
    if (end == T) {
      EXPECT_TRUE(close(state, state_twin, limit()));
    }
    const auto twin =
        lightning_backward_twin(part(g), part(q), part(k), part(v), slopes, window, 0.1);
    EXPECT_TRUE(close(last(part(dq)), last(std::get<0>(twin)), limit())) << end;
    // Gradients of keys look to the right: the window's first rows know all of it.
    const auto head = [&](const at::Tensor& x) { return x.slice(0, 0, 64); };
    EXPECT_TRUE(close(head(part(dk)), head(std::get<1>(twin)), limit())) << end;
    EXPECT_TRUE(close(head(part(dv)), head(std::get<2>(twin)), limit())) << end;
  }
}

TEST_P(LightningKernels, SlowDecaysAddUpOverManyRanges) {
  const int64_t T = int64_t{1} << 17, HS = 128;
  for (const double slope : {0.0, 1e-4}) {
    const at::Tensor slopes = at::full({1}, slope, at::kDouble);
    const at::Tensor q = random({T, 1, HS}), k = random({T, 1, HS}), v = random({T, 1, HS});
    const at::Tensor g = random({T, 1, HS});
    const Documents docs = Documents::single(T, device());
    const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat); };
    const auto [o, state] = lightning_forward(q, k, v, slopes, docs, 0.1);
    const auto [o_wide, state_wide] =
        lightning_forward(wide(q), wide(k), wide(v), slopes, docs, 0.1);
    EXPECT_TRUE(close(o, exact(o_wide), limit())) << slope;
    EXPECT_TRUE(close(state, exact(state_wide), limit())) << slope;
    const auto narrow = lightning_backward(g, q, k, v, slopes, docs, 0.1);
    const auto full = lightning_backward(wide(g), wide(q), wide(k), wide(v), slopes, docs, 0.1);
    EXPECT_TRUE(close(std::get<0>(narrow), exact(std::get<0>(full)), limit())) << "dq " << slope;
    EXPECT_TRUE(close(std::get<1>(narrow), exact(std::get<1>(full)), limit())) << "dk " << slope;
    EXPECT_TRUE(close(std::get<2>(narrow), exact(std::get<2>(full)), limit())) << "dv " << slope;
  }
}

TEST_P(LightningKernels, StatesMayComeAloneAndFromAnywhere) {
  const DocumentCase c{{0, 30, 700}, 900};
  // One element into a flat buffer: no tensor starts at a multiple of 16 bytes.
  const auto shift = [](at::Tensor& x) {
    const at::Tensor flat = at::empty({x.numel() + 1}, x.options());
    x = flat.slice(0, 1).view(x.sizes()).copy_(x);
  };
  for (const int64_t HS : {64, 128}) {
    for (const bool with_initial : {false, true}) {
      LightningInputs x = inputs(c.num_tokens, 3, 3, HS, true);
      for (at::Tensor* t : {&x.q, &x.k, &x.v, &x.g, &x.initial, &x.d_final}) shift(*t);
      (with_initial ? x.d_final : x.initial) = at::Tensor();
      expect_backward(x, c, lightning_slopes(3), 0.2);
    }
  }
}

TEST(LightningDoor, RefusesWhatTheKernelsCannotRead) {
  const at::Tensor q = at::randn({4, 2, 8});
  const Documents docs = Documents::single(4, at::kCPU);
  const auto forward = [&](const at::Tensor& slopes, double scale) {
    lightning_forward(q, q, q, slopes, docs, scale);
  };
  EXPECT_NO_THROW(forward(lightning_slopes(2), 1));
  EXPECT_THROW(forward(lightning_slopes(4).slice(0, 0, 4, 2), 1), c10::Error);
  EXPECT_THROW(forward(at::full({2}, -1.0, at::kDouble), 1), c10::Error);
  EXPECT_THROW(forward(at::full({2}, HUGE_VAL, at::kDouble), 1), c10::Error);
  EXPECT_THROW(forward(lightning_slopes(2), 0), c10::Error);
}

TEST_P(LightningKernels, StatesOfSomeDocumentsAreZeroForTheOthers) {
  for (const int64_t HS : {64, 128}) {
    expect_few_states_are_padded_with_zeros({{0, 60, 61, 1000}, 3000}, HS);
  }
}

TEST_P(LightningKernels, TwoCallsWithACarriedStateEqualOne) {
  expect_two_calls_equal_one(3000, 128, lightning_slopes(3) * 0.1, {1, 64, 1000, 2999});
}

TEST_P(LightningStep, EqualsTheRecurrence) {
  for (const auto& [D, NH, HS] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {1, 1, 4}, {600, 1, 64}, {3, 9, 64}, {2, 3, 100}, {5, 32, 128}, {1, 2, 256}}) {
    const at::Tensor q = random({D, NH, HS}), k = random({D, NH, HS}), v = random({D, NH, HS});
    std::vector<int64_t> starts(D);
    for (int64_t d = 0; d < D; ++d) starts[d] = d;
    const DocumentCase step{starts, D};
    for (const bool with_state : {false, true}) {
      const at::Tensor state = with_state ? random_wide({D, NH, HS, HS}) : at::Tensor();
      const auto [o, next] =
          lightning_forward(q, k, v, lightning_slopes(NH), step.on(device()), 0.3, state);
      const auto [o_twin, next_twin] = lightning_forward_twin(
          exact(q), exact(k), exact(v), lightning_slopes(NH), step.on(at::kCPU), 0.3, exact(state));
      EXPECT_TRUE(close(o, o_twin, limit())) << HS;
      EXPECT_TRUE(close(next, next_twin, tolerance(at::kFloat))) << HS;
      const auto alone = lightning_forward(q, k, v, lightning_slopes(NH), step.on(device()), 0.3,
                                           state, /*want_final_state=*/false);
      EXPECT_TRUE(bit_equal(std::get<0>(alone), o)) << HS;
    }
  }
}

TEST_P(LightningKernels, RunningTwiceGivesTheSameBits) {
  for (const int64_t HS : {64, 128}) expect_same_bits_twice({{0, 77, 5000}, 6000}, HS);
}

TEST_P(LightningKernels, OneDocumentDoesNotChangeTheOthers) {
  for (const int64_t HS : {64, 128}) expect_documents_apart(HS);
}

TEST_P(LightningKernels, WhatIsNotFiniteStaysInItsDocument) {
  for (const int64_t HS : {64, 128}) {
    expect_not_finite_stays(HS, 0);     // every tile a range of its own
    expect_not_finite_stays(HS, 6000);  // ranges of several tiles
  }
}

INSTANTIATE_TEST_SUITE_P(Places, LightningKernels,
                         ::testing::Values(Place{at::kCUDA, at::kBFloat16}), place_name);
INSTANTIATE_TEST_SUITE_P(Places, LightningStep,
                         ::testing::Values(Place{at::kCUDA, at::kFloat},
                                           Place{at::kCUDA, at::kBFloat16}),
                         place_name);

}  // namespace
}  // namespace sala::test
