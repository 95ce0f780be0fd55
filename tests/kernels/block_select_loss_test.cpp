// The selection loss against its definition under autograd, its documents, and that following its
// gradient makes selection find what attention looks at.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "kernels/selection/loss.h"

namespace sala::test {
namespace {

SparseConfig small_loss_config() {
  SparseConfig c;
  c.kernel_size = 8;
  c.kernel_stride = 4;
  c.block_size = 16;
  c.window_size = 16;
  c.init_blocks = 1;
  c.topk = 3;
  c.dense_len = 0;
  return c;
}

struct QueriesAndKeys {
  at::Tensor q, k;
};

QueriesAndKeys random_inputs(int64_t T, int64_t NH, int64_t NKV, int64_t HS, at::ScalarType type) {
  at::manual_seed(7);
  const auto options = at::TensorOptions(at::kDouble);
  return {(at::randn({T, NH, HS}, options) * 2).to(type),
          (at::randn({T, NKV, HS}, options) + at::randn({1, NKV, HS}, options)).to(type)};
}

// The header's formula for one query and KV head, word for word, on tensors that record.
at::Tensor loss_of_query(const at::Tensor& q_GD, const at::Tensor& k_TD, int64_t t,
                         const SparseConfig& c, double scale) {
  const int64_t own = t / c.block_size;
  if (own - kNearBlocks - c.init_blocks < 2) return {};
  const at::Tensor logits = at::matmul(q_GD, k_TD.narrow(0, 0, t + 1).t()) * scale;
  const at::Tensor attention = at::softmax(logits, -1).mean(0).detach();
  std::vector<at::Tensor> means;
  for (int64_t begin = 0; begin + c.kernel_size <= t + 1; begin += c.kernel_stride) {
    means.push_back(k_TD.narrow(0, begin, c.kernel_size).mean(0));
  }
  const at::Tensor w = at::softmax(at::matmul(q_GD, at::stack(means).t()) * scale, -1).sum(0);
  std::vector<at::Tensor> mass, score;
  for (int64_t b = c.init_blocks; b < own - kNearBlocks; ++b) {
    mass.push_back(attention.narrow(0, b * c.block_size, c.block_size).sum());
    const int64_t first = std::max<int64_t>(4 * b - 1, 0);
    score.push_back(w.narrow(0, first, std::min<int64_t>(4 * b + 4, w.size(0)) - first).max());
  }
  const at::Tensor m = at::stack(mass), M = at::stack(score);
  const at::Tensor target = m * m / m.sum();
  const int64_t place = std::max<int64_t>(M.size(0) / kTaughtShare, 1);
  const at::Tensor bar = std::get<0>(M.sort(0, /*descending=*/true))[place - 1];
  return (target * ((bar / M).log() + std::log(kTaughtMargin)).clamp_min(0)).sum();
}

class BlockSelectLoss : public ::testing::TestWithParam<int64_t> {};  // query heads of a KV head

TEST_P(BlockSelectLoss, EqualsItsDefinitionUnderAutograd) {
  const int64_t G = GetParam(), NKV = 2, HS = 8;
  const SparseConfig c = small_loss_config();
  const double scale = 0.4;
  const Documents docs = Documents::from_starts({0, 61, 200, 333}, 733, at::kCPU);
  const QueriesAndKeys in = random_inputs(733, G * NKV, NKV, HS, at::kDouble);
  const SelectionLossOptions options{.weight = 0.7, .query_stride = 5};
  at::Tensor dq = at::ones_like(in.q), dk = at::ones_like(in.k);
  const at::Tensor sums = block_select_loss(in.q, in.k, docs, docs, c, scale, options, dq, dk);

  at::AutoGradMode record(true);
  at::Tensor q = in.q.clone().set_requires_grad(true), k = in.k.clone().set_requires_grad(true);
  at::Tensor total = at::zeros({}, at::kDouble);
  int64_t count = 0;
  for (int64_t d = 0; d < docs.count(); ++d) {
    for (int64_t t = options.query_stride - 1; t < docs.length(d); t += options.query_stride) {
      for (int64_t n = 0; n < NKV; ++n) {
        const at::Tensor loss =
            loss_of_query(q[docs.offsets[d] + t].narrow(0, n * G, G),
                          k.narrow(0, docs.offsets[d], docs.length(d)).select(1, n), t, c, scale);
        if (!loss.defined()) continue;
        total = total + loss / NKV;
        count += n == 0;
      }
    }
  }
  (total * options.weight).backward();
  EXPECT_GT(count, 20);
  EXPECT_EQ(sums[kSelectionCount].item<double>(), static_cast<double>(count));
  EXPECT_NEAR(sums[kSelectionLoss].item<double>(), total.item<double>(), 1e-9 * count);
  EXPECT_LE((dq - 1 - q.grad()).abs().max().item<double>(), 1e-10);
  EXPECT_LE((dk - 1 - k.grad()).abs().max().item<double>(), 1e-10);
  EXPECT_GT(k.grad().abs().max().item<double>(), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Groups, BlockSelectLoss, ::testing::Values(1, 3));

// One is padded, ends before the last slabs of queries begin, and feels nothing of either.
TEST(BlockSelectLoss, DocumentsSideBySideAreEachAlone) {
  const SparseConfig c = small_loss_config();
  const int64_t first = 2900, T = first + 1500;
  const QueriesAndKeys in = random_inputs(T, 6, 2, 8, at::kDouble);
  const SelectionLossOptions options{.weight = 0.7, .query_stride = 5};
  at::Tensor dq = at::zeros_like(in.q), dk = at::zeros_like(in.k);
  const Documents docs = Documents::from_starts({0, first}, T, at::kCPU);
  const at::Tensor sums = block_select_loss(in.q, in.k, docs, docs, c, 0.4, options, dq, dk);
  at::Tensor alone = at::zeros_like(sums);
  for (const auto& [begin, length] : {std::pair{int64_t{0}, first}, {first, T - first}}) {
    const auto rows = [begin = begin, length = length](const at::Tensor& x) {
      return x.narrow(0, begin, length).contiguous();
    };
    at::Tensor dq_alone = at::zeros_like(rows(in.q)), dk_alone = at::zeros_like(rows(in.k));
    const Documents own = Documents::single(length, at::kCPU);
    alone +=
        block_select_loss(rows(in.q), rows(in.k), own, own, c, 0.4, options, dq_alone, dk_alone);
    EXPECT_LE((rows(dq) - dq_alone).abs().max().item<double>(), 1e-10);
    EXPECT_LE((rows(dk) - dk_alone).abs().max().item<double>(), 1e-10);
    EXPECT_GT(dk_alone.abs().max().item<double>(), 1e-4);
  }
  for (const int sum : {kSelectionLoss, kSelectionCount, kSelectionChoices}) {
    EXPECT_NEAR(sums[sum].item<double>(), alone[sum].item<double>(), 1e-8) << sum;
  }
  // Neighbours that share their best window stand alike: which of them a list takes is open.
  const auto missed = alone[kSelectionMissed].item<double>();
  EXPECT_NEAR(sums[kSelectionMissed].item<double>(), missed, 1e-2 * missed);
}

// Of a line on three ranks each has some of the queries, and the keys up to its last one.
TEST(BlockSelectLoss, PartsOfASplitLineAddUpToTheWhole) {
  const SparseConfig c = small_loss_config();
  const int64_t T = 1333;
  const std::vector<int64_t> starts = {0, 61, 500, 1100};
  const Documents docs = Documents::from_starts(starts, T, at::kCPU);
  const QueriesAndKeys in = random_inputs(T, 6, 2, 8, at::kDouble);
  const SelectionLossOptions options{.weight = 0.7, .query_stride = 5};
  at::Tensor dq = at::zeros_like(in.q), dk = at::zeros_like(in.k);
  const at::Tensor sums = block_select_loss(in.q, in.k, docs, docs, c, 0.4, options, dq, dk);
  at::Tensor dq_parts = at::zeros_like(in.q), dk_parts = at::zeros_like(in.k);
  at::Tensor sums_of_parts = at::zeros_like(sums);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 423}, {423, 1100}, {1100, T}}) {
    // Keys begin where the document does that is open at `begin`.
    const int64_t first_key = *std::prev(std::ranges::upper_bound(starts, begin));
    std::vector<int64_t> q_starts = {0}, k_starts = {0};
    for (int64_t start : starts) {
      if (start <= begin || start >= end) continue;
      q_starts.push_back(start - begin);
      k_starts.push_back(start - first_key);
    }
    const auto part = [](const at::Tensor& x, int64_t from, int64_t to) {
      return x.narrow(0, from, to - from);
    };
    at::Tensor dq_part = part(dq_parts, begin, end), dk_part = part(dk_parts, first_key, end);
    sums_of_parts += block_select_loss(part(in.q, begin, end), part(in.k, first_key, end),
                                       Documents::from_starts(q_starts, end - begin, at::kCPU),
                                       Documents::from_starts(k_starts, end - first_key, at::kCPU),
                                       c, 0.4, options, dq_part, dk_part);
  }
  EXPECT_GT(sums[kSelectionChoices].item<double>(), 100);
  for (const int sum : {kSelectionLoss, kSelectionCount, kSelectionChoices}) {
    EXPECT_NEAR(sums_of_parts[sum].item<double>(), sums[sum].item<double>(), 1e-8) << sum;
  }
  const auto missed = sums[kSelectionMissed].item<double>();  // ties may fall otherwise, as above
  EXPECT_NEAR(sums_of_parts[kSelectionMissed].item<double>(), missed, 1e-2 * missed);
  EXPECT_LE((dq_parts - dq).abs().max().item<double>(), 1e-10);
  EXPECT_LE((dk_parts - dk).abs().max().item<double>(), 1e-10);
  EXPECT_GT(dk.abs().max().item<double>(), 1e-4);
}

TEST(BlockSelectLoss, MissedMassIsThatOfBlocksThatTheListsLeaveOut) {
  const SparseConfig c = small_loss_config();
  const Documents docs = Documents::single(400, at::kCPU);
  const QueriesAndKeys in = random_inputs(400, 2, 1, 8, at::kDouble);
  const double scale = 0.4;
  const SelectionLossOptions options{.weight = 0, .query_stride = 7};
  at::Tensor dq = at::zeros_like(in.q), dk = at::zeros_like(in.k);
  const at::Tensor sums = block_select_loss(in.q, in.k, docs, docs, c, scale, options, dq, dk);
  EXPECT_EQ(dk.abs().max().item<double>(), 0);
  const at::Tensor lists = block_select(in.q, in.k, docs, docs, c, scale);
  double missed = 0;
  for (int64_t t = 6; t < 400; t += 7) {
    if (t / c.block_size < c.init_blocks + c.local_blocks() + 2) continue;
    const at::Tensor attention =
        at::softmax(at::matmul(in.q[t], in.k.narrow(0, 0, t + 1).select(1, 0).t()) * scale, -1)
            .mean(0);
    std::vector<bool> listed(400 / c.block_size + 1, false);
    for (int64_t i = 0; i < lists.size(2); ++i) {
      const int b = lists[0][t][i].item<int>();
      if (b >= 0) listed[static_cast<size_t>(b)] = true;
    }
    for (int64_t j = 0; j <= t; ++j) {
      if (!listed[static_cast<size_t>(j / c.block_size)]) missed += attention[j].item<double>();
    }
  }
  // Selection normalises by wider windows: a few heads' sums may rank otherwise.
  EXPECT_NEAR(sums[kSelectionMissed].item<double>(), missed, 0.05 * missed);
}

TEST(BlockSelectLoss, QueriesInTheWindowAreTaughtButHaveNoChoice) {
  SparseConfig c = small_loss_config();
  c.window_size = 96;
  const Documents docs = Documents::single(400, at::kCPU);
  const QueriesAndKeys in = random_inputs(400, 2, 1, 8, at::kDouble);
  at::Tensor dq = at::zeros_like(in.q), dk = at::zeros_like(in.k);
  const at::Tensor sums =
      block_select_loss(in.q, in.k, docs, docs, c, 0.4, {.weight = 1, .query_stride = 7}, dq, dk);
  int64_t count = 0, choices = 0;
  for (int64_t t = 6; t < 400; t += 7) {
    const int64_t own = t / c.block_size;
    count += own >= c.init_blocks + kNearBlocks + 2;
    choices += own > c.init_blocks + c.local_blocks();
  }
  EXPECT_LT(choices, count);
  EXPECT_EQ(sums[kSelectionCount].item<double>(), static_cast<double>(count));
  EXPECT_EQ(sums[kSelectionChoices].item<double>(), static_cast<double>(choices));
}

// All that may be chosen but one block scores 0 in fp32; the bar stays among them.
TEST(BlockSelectLoss, ScoresOfZeroGiveAFiniteGradient) {
  const SparseConfig c = small_loss_config();
  const Documents docs = Documents::single(400, at::kCPU);
  QueriesAndKeys in = random_inputs(400, 1, 1, 8, at::kFloat);
  in.q.fill_(1);
  in.k.narrow(0, 0, 16).fill_(50);  // the first block, which is forced
  at::Tensor dq = at::zeros_like(in.q), dk = at::zeros_like(in.k);
  block_select_loss(in.q, in.k, docs, docs, c, 1, {.weight = 1, .query_stride = 3}, dq, dk);
  EXPECT_LE(dq.abs().max().item<double>(), 1e3);
  EXPECT_LE(dk.abs().max().item<double>(), 1e3);
}

TEST(BlockSelectLoss, AnotherDocumentChangesNoBit) {
  const SparseConfig c = small_loss_config();
  const Documents docs = Documents::from_starts({0, 150}, 320, at::kCPU);
  QueriesAndKeys in = random_inputs(320, 3, 1, 16, at::kFloat);
  const SelectionLossOptions options{.weight = 1, .query_stride = 3};
  const auto gradients = [&] {
    at::Tensor dq = at::zeros_like(in.q), dk = at::zeros_like(in.k);
    block_select_loss(in.q, in.k, docs, docs, c, 0.3, options, dq, dk);
    return std::pair{dq, dk};
  };
  const auto [dq, dk] = gradients();
  in.q.narrow(0, 150, 170).normal_();
  in.k.narrow(0, 150, 170).normal_();
  const auto [dq_other, dk_other] = gradients();
  EXPECT_TRUE(dq.narrow(0, 0, 150).equal(dq_other.narrow(0, 0, 150)));
  EXPECT_TRUE(dk.narrow(0, 0, 150).equal(dk_other.narrow(0, 0, 150)));
  EXPECT_FALSE(dk.narrow(0, 150, 170).equal(dk_other.narrow(0, 150, 170)));
}

TEST(BlockSelectLoss, FollowingTheGradientMakesSelectionFindWhatAttentionLooksAt) {
  const SparseConfig c = small_loss_config();
  const Documents docs = Documents::single(512, at::kCPU);
  QueriesAndKeys in = random_inputs(512, 2, 1, 16, at::kFloat);
  in.q.mul_(2);
  const SelectionLossOptions options{.weight = 1, .query_stride = 5};
  double first = 0, last = 0, missed_first = 0, missed_last = 0;
  for (int step = 0; step < 300; ++step) {
    at::Tensor dq = at::zeros_like(in.q), dk = at::zeros_like(in.k);
    const at::Tensor sums = block_select_loss(in.q, in.k, docs, docs, c, 0.5, options, dq, dk);
    last = sums[kSelectionLoss].item<double>();
    missed_last = sums[kSelectionMissed].item<double>();
    if (step == 0) first = last, missed_first = missed_last;
    in.q.sub_(dq);
    in.k.sub_(dk);
  }
  EXPECT_LT(last, 0.5 * first);
  EXPECT_LT(missed_last, 0.75 * missed_first);  // lists have room for one block of many
}

TEST(BlockSelectLoss, CudaIsTheCpusAndTheSameBitsAgain) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  const SparseConfig c = small_loss_config();
  const QueriesAndKeys in = random_inputs(1000, 6, 2, 64, at::kBFloat16);
  const SelectionLossOptions options{.weight = 1, .query_stride = 3};
  const auto run = [&](at::Device device, at::ScalarType type) {
    const Documents docs = Documents::from_starts({0, 300}, 1000, device);
    const at::Tensor q = in.q.to(device).to(type), k = in.k.to(device).to(type);
    at::Tensor dq = at::zeros_like(q), dk = at::zeros_like(k);
    const at::Tensor sums = block_select_loss(q, k, docs, docs, c, 0.125, options, dq, dk);
    return std::vector<at::Tensor>{sums.cpu(), dq.cpu(), dk.cpu()};
  };
  const auto twin = run(at::kCPU, at::kBFloat16), once = run(at::kCUDA, at::kBFloat16),
             twice = run(at::kCUDA, at::kBFloat16);
  for (size_t i = 0; i < twin.size(); ++i) {
    EXPECT_TRUE(once[i].equal(twice[i])) << i;
    const double error = (once[i].to(at::kDouble) - twin[i].to(at::kDouble)).norm().item<double>();
    EXPECT_LE(error, 1e-2 * twin[i].to(at::kDouble).norm().item<double>()) << i;
  }
}

TEST(BlockSelectLoss, ShortDocumentsHaveNothingToChoose) {
  const SparseConfig c = small_loss_config();
  const Documents docs = Documents::from_starts({0, 40}, 80, at::kCPU);
  const QueriesAndKeys in = random_inputs(80, 2, 1, 16, at::kFloat);
  at::Tensor dq = at::zeros_like(in.q), dk = at::zeros_like(in.k);
  const at::Tensor sums = block_select_loss(in.q, in.k, docs, docs, c, 0.3, {.weight = 1}, dq, dk);
  EXPECT_EQ(sums.abs().sum().item<double>(), 0);
  EXPECT_EQ(dk.abs().max().item<double>(), 0);
}

}  // namespace
}  // namespace sala::test
