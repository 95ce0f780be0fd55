// Who is told of ways that ops go on a GPU, and what strict rules refuse: the decision alone, then
// (on a GPU) every op whose kernels do not take a call.
#include "kernels/paths.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace sala::test {
namespace {

class Paths : public ::testing::Test {
 protected:
  void put(bool strict) {
    set_path_rules({.strict = strict, .tell = [this](const std::string& line, bool slow) {
                      told_.emplace_back(line, slow);
                    }});
  }
  void SetUp() override {
    before_ = set_path_rules({});
    put(/*strict=*/false);
  }
  void TearDown() override { set_path_rules(std::move(before_)); }

  PathRules before_;
  std::vector<std::pair<std::string, bool>> told_;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return {};
}

TEST_F(Paths, AFallbackIsToldOnceForEachOpAndReason) {
  EXPECT_TRUE(kernels_run("some_op", ""));
  EXPECT_TRUE(told_.empty());
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(kernels_run("some_op", "head size 64 or 128, got 80"));
    EXPECT_FALSE(kernels_run("some_op", "bf16, got Float"));
    EXPECT_FALSE(kernels_run("another_op", "bf16, got Float"));
    tell_way("some_op", "the short way");
  }
  ASSERT_EQ(told_.size(), 4u);
  EXPECT_EQ(told_[0].first,
            "some_op: its kernels need head size 64 or 128, got 80; a composition of LibTorch "
            "calls, many times slower, runs instead");
  EXPECT_TRUE(told_[0].second);
  EXPECT_EQ(told_[3], std::make_pair(std::string("some_op: the short way"), false));
}

TEST_F(Paths, NewRulesForgetWhatWasTold) {
  kernels_run("some_op", "bf16, got Float");
  put(/*strict=*/false);
  kernels_run("some_op", "bf16, got Float");
  EXPECT_EQ(told_.size(), 2u);
}

TEST_F(Paths, StrictRulesRefuseAFallbackAndSayWhatIsNeeded) {
  put(/*strict=*/true);
  EXPECT_TRUE(kernels_run("some_op", ""));
  tell_way("some_op", "the short way");
  const std::string error = error_of([] { kernels_run("some_op", "head size 64 or 128, got 80"); });
  EXPECT_NE(error.find("some_op: its kernels need head size 64 or 128, got 80"), std::string::npos)
      << error;
  EXPECT_NE(error.find("kernels: strict"), std::string::npos) << error;
  EXPECT_EQ(told_.size(), 1u);
}

TEST_F(Paths, OpsOnTheCpuAreNobodysFallback) {
  put(/*strict=*/true);
  const at::Tensor x = at::randn({3, 4, 10});
  const Documents docs = Documents::single(3, at::kCPU);
  dense_attention_output(x, x, x, docs, docs, 1);
  lightning_forward(x, x, x, lightning_slopes(4), docs, 1);
  block_sparse_attention_forward(x, x, x, at::zeros({4, 3, 1}, at::kInt), docs, docs, 16, 1);
  block_select(x, x, docs, docs, SparseConfig(), 1);
  rmsnorm_forward(x, at::ones({10}), 1e-6);
  EXPECT_TRUE(told_.empty());
}

// Calls whose kernels need something else, each with a word of what.
struct Call {
  const char* what;
  std::function<void()> run;
};

std::vector<Call> calls_that_fall_back() {
  const at::TensorOptions bf16 = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const auto heads = [=](int64_t N, int64_t HS) { return at::randn({70, N, HS}, bf16); };
  const Documents docs = Documents::single(70, at::kCUDA);
  const at::Tensor blocks = at::zeros({1, 70, 1}, at::TensorOptions(at::kCUDA).dtype(at::kInt));
  const at::Tensor wide = at::randn({2, 10000}, bf16);
  const at::Tensor fp64 = at::randn({2, 8}, bf16.dtype(at::kDouble));
  const auto sparse = [=](const at::Tensor& q, const at::Tensor& k) {
    block_sparse_attention_forward(q, k, k, blocks, docs, docs, 64, 0.1);
  };
  const auto lightning = [=](const at::Tensor& q) {
    lightning_forward(q, q, q, lightning_slopes(q.size(1)), docs, 0.1);
  };
  return {
      {"got 20", [=] { sparse(heads(20, 64), heads(1, 64)); }},
      {"got 96", [=] { sparse(heads(2, 96), heads(1, 96)); }},
      {"got Float", [=] { sparse(heads(2, 64).to(at::kFloat), heads(1, 64).to(at::kFloat)); }},
      {"got 32", [=] { lightning(heads(2, 32)); }},
      {"got Float", [=] { lightning(heads(2, 64).to(at::kFloat)); }},
      {"block_select",
       [=] { block_select(heads(20, 64), heads(1, 64), docs, docs, SparseConfig(), 0.1); }},
      {"dense_attention",
       [=] {
         const at::Tensor x = heads(2, 64).to(at::kFloat);
         dense_attention_output(x, x, x, docs, docs, 0.1);
       }},
      {"got 20000", [=] { rmsnorm_forward(wide, at::ones({10000}, bf16), 1e-6); }},
      {"got 20000", [=] { gated_norm_forward(wide, wide, {}, 1e-6); }},
      {"got Double", [=] { swiglu_forward(fp64, fp64); }},
      {"got Double",
       [=] {
         qk_norm_rope_forward(fp64.view({2, 1, 8}), {}, {}, {}, 1e-6);
       }},
  };
}

using PathsCuda = Paths;

TEST_F(PathsCuda, EveryFallbackIsToldOrRefused) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  for (const Call& call : calls_that_fall_back()) {
    put(/*strict=*/false);
    told_.clear();
    call.run();
    ASSERT_FALSE(told_.empty()) << call.what;
    EXPECT_NE(told_[0].first.find(call.what), std::string::npos) << told_[0].first;
    EXPECT_TRUE(told_[0].second);
    put(/*strict=*/true);
    EXPECT_NE(error_of(call.run).find(call.what), std::string::npos) << call.what;
  }
}

}  // namespace
}  // namespace sala::test
