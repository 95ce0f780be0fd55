// Generation on a GPU in bf16: decode steps against whole passes, a captured step against plain
// ones, prompts fed in chunks. Skipped without a GPU.
#include <gtest/gtest.h>

#include "model/forward.h"
#include "model/generate.h"
#include "model/generation/greedy.h"
#include "tests/gpu/small_hybrid.h"
#include "trainer/ranks/device_info.h"

namespace sala {

namespace {

using Ids = std::vector<int64_t>;

class GpuDecode : public testing::Test {
 protected:
  void SetUp() override {
    if (num_gpus() < 1) GTEST_SKIP() << "needs a GPU and a build with CUDA";
    at::manual_seed(5);
    weights_ = std::make_unique<HeldWeights>(model_.layouts(), at::kBFloat16, gpu_);
    for (Weights& part : weights_->parts()) {
      for (size_t i = 0; i < part.views().size(); ++i) {
        const bool norm = part.layout().entries[i].init == Init::kOnes;
        norm ? part.views()[i].fill_(1) : part.views()[i].normal_(0, 0.06);
      }
    }
  }

  static Ids random_ids(int64_t length) {
    const at::Tensor ids = at::randint(0, 1000, {length}, at::kLong);
    return Ids(ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + length);
  }
  std::vector<Ids> prompts_of(const Ids& lengths) const {
    std::vector<Ids> prompts;
    for (const int64_t length : lengths) prompts.push_back(random_ids(length));
    return prompts;
  }
  DecodeCacheShape shape(int64_t num_sequences, int64_t capacity) const {
    return {.num_sequences = num_sequences,
            .capacity = capacity,
            .dtype = at::kBFloat16,
            .device = gpu_};
  }
  static double relative(const at::Tensor& x, const at::Tensor& expected) {
    const at::Tensor y = expected.to(at::kFloat);
    return ((x.to(at::kFloat) - y).norm() / y.norm()).item<double>();
  }

  const at::Device gpu_{at::kCUDA, 0};
  const Model model_{small_hybrid()};
  std::unique_ptr<HeldWeights> weights_;
};

// Dense sequences beside others that select; none crosses the border, where tokens that were fed
// densely keep what they saw.
TEST_F(GpuDecode, StepsAgreeWithWholePasses) {
  constexpr int64_t kSteps = 40;
  const std::vector<Ids> rows = prompts_of({5 + kSteps, 130 + kSteps, 410 + kSteps, 700 + kSteps});
  std::vector<Ids> prompts;
  for (const Ids& row : rows) prompts.emplace_back(row.begin(), row.end() - kSteps);
  DecodeCache cache(model_.config(), shape(4, 800));
  Decoder decoder(model_, *weights_, cache, 1000);
  std::vector<at::Tensor> steps{decoder.prefill(prompts)};
  for (int64_t i = 0; i < kSteps; ++i) {
    Ids ids;
    for (const Ids& row : rows) ids.push_back(row[row.size() - kSteps + i]);
    steps.push_back(decoder.step(at::tensor(ids, at::kLong).to(gpu_)));
  }
  const at::Tensor stepped = at::stack(steps, 1);  // (S, steps + 1, C)
  for (size_t s = 0; s < rows.size(); ++s) {
    const Batch batch = single_document(rows[s], 0, gpu_);
    const at::Tensor whole = hidden(model_, *weights_, model_.env(batch, true));
    EXPECT_LE(relative(stepped[static_cast<int64_t>(s)],
                       whole.narrow(0, whole.size(0) - kSteps - 1, kSteps + 1)),
              0.05)
        << rows[s].size();
  }
}

TEST_F(GpuDecode, ACapturedStepGivesTheIdsOfPlainOnes) {
  const std::vector<Ids> prompts = prompts_of({390, 12, 399, 640, 395});
  GenerateOptions options;
  options.max_new_tokens = 30;  // some begin to select on the way
  options.device = gpu_;
  const std::vector<Ids> plain = generate_batch(model_, *weights_, prompts, options);
  EXPECT_EQ(generate_batch(model_, *weights_, prompts, options), plain);
  options.graph = true;
  EXPECT_EQ(generate_batch(model_, *weights_, prompts, options), plain);
  options.stop_ids = {plain[0][20]};
  const std::vector<Ids> stopped = generate_batch(model_, *weights_, prompts, options);
  EXPECT_LE(stopped[0].size(), 21u);
  EXPECT_EQ(stopped[0].back(), plain[0][20]);
}

TEST_F(GpuDecode, ChunksOfAPromptKeepWhatAWholeOneKeeps) {
  const std::vector<Ids> prompts = prompts_of({700, 130});
  DecodeCache whole(model_.config(), shape(2, 704)), chunked(model_.config(), shape(2, 704));
  const at::Tensor x = Decoder(model_, *weights_, whole, 1000).prefill(prompts);
  const at::Tensor y = Decoder(model_, *weights_, chunked, 96).prefill(prompts);
  EXPECT_LE(relative(y, x), 0.05);
  for (size_t l = 0; l < whole.layers.size(); ++l) {
    const LayerCache &a = whole.layers[l], &b = chunked.layers[l];
    if (a.state.defined()) {
      EXPECT_LE(relative(b.state, a.state), 0.05) << l;
    } else {
      EXPECT_LE(relative(b.keys.k[0].narrow(0, 0, 700), a.keys.k[0].narrow(0, 0, 700)), 0.05) << l;
    }
  }
}

}  // namespace

}  // namespace sala
