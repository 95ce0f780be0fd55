// The CUDA kernels of block selection against the composition on the CPU (which block_select_test
// holds to the twin): group and head sizes, lengths beside every border, packed documents; the same
// bits whatever the slab and the piece of a document.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/ops.h"
#include "kernels/selection/cuda.h"
#include "tests/kernels/attention_cases.h"

namespace sala::test {
namespace {

SparseConfig config_of(int64_t stride, int64_t init, int64_t local, int64_t topk) {
  SparseConfig c;
  c.kernel_size = 2 * stride;
  c.kernel_stride = stride;
  c.block_size = 4 * stride;
  c.init_blocks = init;
  c.window_size = local * c.block_size;
  c.topk = topk;
  return c;
}

class BlockSelectKernels : public OpInPlace {
 protected:
  // Lists that differ from the CPU's, which sums in another order: ties within rounding.
  int64_t differing(const DocumentCase& c, int64_t NH, int64_t NKV, int64_t HS,
                    const SparseConfig& config) const {
    const at::Tensor q = random({c.num_tokens, NH, HS}), k = random({c.num_tokens, NKV, HS});
    const double scale = 1 / std::sqrt(static_cast<double>(HS));
    const Documents docs = c.on(device()), host = c.on(at::kCPU);
    EXPECT_TRUE(!at::hasCUDA() || lacks_nothing(q, k, docs, config, scale));
    const at::Tensor lists = on_cpu(block_select(q, k, docs, docs, config, scale));
    const at::Tensor expected = block_select(q.cpu(), k.cpu(), host, host, config, scale);
    return lists.ne(expected).any(2).sum().item<int64_t>();
  }
  // On GPUs other than Hopper the composition runs, and must be right as well.
  static bool lacks_nothing(const at::Tensor& q, const at::Tensor& k, const Documents& docs,
                            const SparseConfig& config, double scale) {
    static const bool hopper = block_select_kernels_run(
        at::empty({1, 1, 64}, q.options()), at::empty({1, 1, 64}, q.options()), docs, config, 1);
    return !hopper || block_select_kernels_run(q, k, docs, config, scale);
  }
};

TEST_P(BlockSelectKernels, TakeEveryGroupAndHeadSize) {
  int64_t differ = 0;
  for (const int64_t HS : {64, 128}) {
    for (int64_t G = 1; G <= 16; ++G) {
      differ += differing({{0, 400}, 600}, 2 * G, 2, HS, config_of(4, 1, 2, 3));
    }
  }
  EXPECT_LE(differ, 32 * 1200 / 1000);
}

TEST_P(BlockSelectKernels, TakeAllLengthsAndOptions) {
  for (const SparseConfig& config :
       {config_of(4, 1, 2, 3), config_of(4, 0, 0, 2), config_of(4, 2, 1, 3), config_of(4, 1, 3, 2),
        config_of(6, 1, 0, 9), config_of(16, 3, 4, 9)}) {
    for (const int64_t T : {1, 15, 16, 31, 63, 64, 65, 127, 128, 700}) {
      EXPECT_LE(differing({{0}, T}, 16, 1, 128, config), 1) << T;
    }
    EXPECT_LE(differing({{0, 1, 16, 79, 412, 476, 1376}, 1500}, 6, 2, 64, config), 3);
  }
  const DocumentCase around{{0, 6143, 12287, 18432}, 18432 + 6300};
  EXPECT_LE(differing(around, 32, 2, 128, SparseConfig()), 1);
}

TEST_P(BlockSelectKernels, ListsDoNotDependOnSlabsAndPieces) {
  const int64_t T = 9000;
  const SparseConfig config = config_of(4, 1, 4, 12);
  const at::Tensor q = random({T, 32, 128}), k = random({T, 2, 128});
  const Documents docs = Documents::from_starts({0, 1000}, T, device());
  const at::Tensor lists = block_select(q, k, docs, docs, config, 0.1);
  if (!block_select_kernels_run(q, k, docs, config, 0.1)) {
    GTEST_SKIP() << "the kernels need a GPU of compute capability 9.0";
  }
  EXPECT_TRUE(bit_equal(lists, block_select(q, k, docs, docs, config, 0.1)));
  EXPECT_TRUE(bit_equal(lists, block_select_cuda(q, k, docs, docs, config, 0.1, 1)));
  for (const auto& [begin, end] :
       std::vector<std::pair<int64_t, int64_t>>{{1000, 1001}, {1003, 2500}, {8999, 9000}}) {
    const at::Tensor piece = block_select(q.slice(0, begin, end), k.slice(0, 1000, end),
                                          Documents::single(end - begin, device()),
                                          Documents::single(end - 1000, device()), config, 0.1);
    EXPECT_TRUE(bit_equal(lists.slice(1, begin, end), piece)) << begin;
  }
}

// Values that are not numbers choose arbitrary blocks, for their own document, in lists that the
// attention can still walk.
TEST_P(BlockSelectKernels, NaNStaysInItsDocumentAndListsStayLists) {
  const int64_t T = 1200;
  const SparseConfig config = config_of(4, 1, 2, 3);
  at::Tensor q = random({T, 16, 128}), k = random({T, 1, 128});
  const Documents docs = Documents::from_starts({0, 500, 900}, T, device());
  const at::Tensor before = on_cpu(block_select(q, k, docs, docs, config, 0.1));
  k[600].fill_(NAN);
  q[700].fill_(HUGE_VAL);
  const at::Tensor after = on_cpu(block_select(q, k, docs, docs, config, 0.1));
  EXPECT_TRUE(bit_equal(before.slice(1, 0, 500), after.slice(1, 0, 500)));
  EXPECT_TRUE(bit_equal(before.slice(1, 900), after.slice(1, 900)));
  const at::Tensor full = after.slice(1, 580, 900);  // more blocks than a list holds
  EXPECT_TRUE(full.slice(2, 1).gt(full.slice(2, 0, -1)).all().item<bool>());
  EXPECT_GE(full.min().item<int>(), 0);
  const at::Tensor own = at::arange(80, 400).floor_divide(16).unsqueeze(0);
  EXPECT_TRUE(at::equal(full.select(2, full.size(2) - 1).to(at::kLong), own));
}

INSTANTIATE_TEST_SUITE_P(Places, BlockSelectKernels,
                         ::testing::Values(Place{at::kCUDA, at::kBFloat16}), place_name);

}  // namespace
}  // namespace sala::test
