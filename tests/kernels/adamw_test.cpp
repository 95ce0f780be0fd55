// The optimizer against its twin, its copy, and the independence of an element from its shard.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "kernels/twins/twins.h"
#include "tests/kernels/tolerance.h"

namespace sala::test {
namespace {

AdamW options(int64_t step) {
  AdamW o;
  o.lr = 3e-3;
  o.beta2 = 0.99;
  o.weight_decay = 0.1;
  o.grad_scale = 0.5;
  o.step = step;
  return o;
}

class Adam : public ::testing::TestWithParam<at::DeviceType> {
 protected:
  void SetUp() override {
    at::manual_seed(9);
    if (GetParam() == at::kCUDA && !at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

TEST_P(Adam, EqualsTwinOverSteps) {
  for (int64_t n : {1, 3, 17, 40001}) {
    for (at::ScalarType copy_type : {at::kFloat, at::kBFloat16}) {
      at::Tensor w = at::randn({n}), m = at::zeros({n}), v = at::zeros({n});
      at::Tensor w_twin = w.clone(), m_twin = m.clone(), v_twin = v.clone();
      w = w.to(GetParam()), m = m.to(GetParam()), v = v.to(GetParam());
      at::Tensor copy = at::empty({n}, w.options().dtype(copy_type));
      for (int64_t step = 1; step <= 3; ++step) {
        const at::Tensor grad = at::randn({n});
        adamw_step(w, m, v, grad.to(GetParam()), copy, options(step));
        adamw_step_twin(w_twin, m_twin, v_twin, grad, {}, options(step));
      }
      EXPECT_TRUE(close(w, w_twin)) << n;
      EXPECT_TRUE(close(m, m_twin)) << n;
      EXPECT_TRUE(close(v, v_twin)) << n;
      EXPECT_TRUE(bit_equal(copy, w.to(copy_type))) << n;
    }
  }
}

TEST_P(Adam, OfAShardIsTheShardOfTheWhole) {
  const int64_t n = 50021;
  const auto random = [&] { return at::randn({n}).to(GetParam()); };
  at::Tensor w = random(), m = random(), v = random().abs(), grad = random();
  at::Tensor w2 = w.clone(), m2 = m.clone(), v2 = v.clone();
  adamw_step(w, m, v, grad, {}, options(7));
  for (const auto& [begin, count] :
       {std::pair<int64_t, int64_t>{0, 17}, {17, 40000}, {40017, 10004}}) {
    at::Tensor a = w2.narrow(0, begin, count), b = m2.narrow(0, begin, count),
               c = v2.narrow(0, begin, count);
    adamw_step(a, b, c, grad.narrow(0, begin, count), {}, options(7));
  }
  EXPECT_TRUE(bit_equal(w, w2));
  EXPECT_TRUE(bit_equal(m, m2));
  EXPECT_TRUE(bit_equal(v, v2));
}

// More segments than one launch takes, an empty one among them, each with settings of its own.
TEST_P(Adam, OfSegmentsIsEachSegmentAlone) {
  const int64_t n = 5003;
  const auto random = [&] { return at::randn({n}).to(GetParam()); };
  at::Tensor w = random(), m = random(), v = random().abs(), grad = random();
  at::Tensor copy = at::zeros({n}, w.options().dtype(at::kBFloat16)), copy2 = copy.clone();
  at::Tensor w2 = w.clone(), m2 = m.clone(), v2 = v.clone();
  std::vector<AdamWSegment> segments;
  for (int64_t i = 0; i < 45; ++i) {
    segments.push_back({i * 111, i == 3 ? 0 : 100, 1.0 + 0.1 * i, i % 2 ? 0.1 : 0.0});
  }
  adamw_step(w, m, v, grad, copy, options(7), segments);
  for (const AdamWSegment& s : segments) {
    const auto range = [&](at::Tensor& x) { return x.narrow(0, s.begin, s.count); };
    at::Tensor a = range(w2), b = range(m2), c = range(v2);
    AdamW o = options(7);
    o.lr *= s.lr_scale;
    o.weight_decay = s.weight_decay;
    adamw_step(a, b, c, range(grad), range(copy2), o);
  }
  EXPECT_TRUE(bit_equal(w, w2));
  EXPECT_TRUE(bit_equal(m, m2));
  EXPECT_TRUE(bit_equal(v, v2));
  EXPECT_TRUE(bit_equal(copy, copy2));
}

INSTANTIATE_TEST_SUITE_P(Devices, Adam, ::testing::Values(at::kCPU, at::kCUDA),
                         [](const auto& info) { return info.param == at::kCUDA ? "Cuda" : "Cpu"; });

TEST(AdamDoor, SaysWhatWasExpectedAndWhatCame) {
  at::Tensor w = at::zeros({3}), m = at::zeros({3}), v = at::zeros({3});
  EXPECT_THROW(adamw_step(w, m, v, at::zeros({4}), {}, options(1)), c10::Error);
  EXPECT_THROW(adamw_step(w, m, v, at::zeros({3}), {}, options(0)), c10::Error);
  EXPECT_THROW(adamw_step(w, m, v, at::zeros({3}), {}, options(1), {{2, 2}}), c10::Error);
}

}  // namespace
}  // namespace sala::test
