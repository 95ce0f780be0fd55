// Block selection of InfLLM-V2 (arXiv:2509.24663). Keys are averaged over windows of kernel_size
// tokens; a query's weight on a window is exp(score - lse) summed over the G heads that share the
// KV head, with lse from windows four times as wide; a block's score is the largest weight among
// the windows that touch it. A window counts once its last token is at or before the query; blocks
// yet to come score -inf, forced blocks +inf, and of equal scores the lower block wins
// (neighbouring blocks share a window, so ties are frequent). Queries that see no more than K
// blocks list them all, without scores.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <limits>

#include "kernels/attention/query_slabs.h"
#include "kernels/check.h"
#include "kernels/ops.h"
#include "kernels/selection/composed.h"
#include "kernels/selection/cuda.h"
#include "kernels/to_device.h"

namespace sala {

namespace {

constexpr int64_t kScoreBytesCpu = int64_t{8} << 20;
constexpr int64_t kScoreBytesCuda = int64_t{256} << 20;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_config(const SparseConfig& c) {
  TORCH_CHECK(c.kernel_stride > 0 && c.kernel_size == 2 * c.kernel_stride &&
                  c.block_size == 4 * c.kernel_stride,
              "block_select: expected kernel_size = 2 * kernel_stride and block_size = 4 * ",
              "kernel_stride, got kernel_size ", c.kernel_size, ", kernel_stride ", c.kernel_stride,
              ", block_size ", c.block_size);
  TORCH_CHECK(
      c.init_blocks >= 0 && c.window_size >= 0 && c.topk > c.init_blocks &&
          c.blocks_per_token() >= 2,
      "block_select: expected room for the forced blocks (topk > init_blocks, two blocks or "
      "more), got topk ",
      c.topk, ", init_blocks ", c.init_blocks, ", window_size ", c.window_size);
}

// Means of `taps` neighbours along dimension 1 of x (NKV, n, HS): (NKV, n / taps, HS).
at::Tensor means(const at::Tensor& x, int64_t taps) {
  const int64_t n = x.size(1) / taps;
  return x.narrow(1, 0, n * taps).view({x.size(0), n, taps, x.size(2)}).mean(2);
}

// Windows overlap by half: each is the mean of two neighbouring halves. (NKV, max(n - 1, 0), HS)
at::Tensor windows(const at::Tensor& halves) {
  const int64_t n = std::max<int64_t>(halves.size(1) - 1, 0);
  return halves.narrow(1, 0, n).add(halves.narrow(1, halves.size(1) - n, n)).mul_(0.5);
}

// True for the windows of half-width `half` that a query does not see yet: (n, count).
at::Tensor unseen(const at::Tensor& position, int64_t count, int64_t half) {
  const at::Tensor seen = (position + 1).floor_divide(half).sub_(1);  // windows that have ended
  return at::arange(count, position.options()).unsqueeze(0) >= seen.unsqueeze(1);
}

// Weights of windows, summed over the group: (NKV, n, windows), -inf where unseen.
at::Tensor window_weights(const at::Tensor& q_rows, const at::Tensor& fine,
                          const at::Tensor& coarse, const at::Tensor& position,
                          const SparseConfig& c) {
  const int64_t NKV = q_rows.size(0), n = position.size(0);
  const auto grouped = [&](const at::Tensor& x) { return x.view({NKV, -1, n, x.size(2)}); };
  at::Tensor wide = at::bmm(q_rows, coarse.transpose(1, 2));
  grouped(wide).masked_fill_(unseen(position, coarse.size(1), 4 * c.kernel_stride), -kInfinity);
  // The coarse scores do not bound the fine ones: cut where fp32 could overflow.
  at::Tensor weight = at::bmm(q_rows, fine.transpose(1, 2));
  weight.sub_(at::logsumexp(wide, 2, /*keepdim=*/true)).clamp_max_(80).exp_();
  return grouped(weight).sum(1).masked_fill_(unseen(position, fine.size(1), c.kernel_stride),
                                             -kInfinity);
}

// Largest weight among windows 4b - 1 .. 4b + 3 of each block b: (NKV, n, NB).
at::Tensor pooled(const at::Tensor& weight, int64_t NB, int64_t ratio) {
  at::Tensor padded =
      at::full({weight.size(0), weight.size(1), NB * ratio}, -kInfinity, weight.options());
  padded.narrow(2, 0, weight.size(2)).copy_(weight);
  const at::Tensor per_block = padded.view({weight.size(0), weight.size(1), NB, ratio});
  at::Tensor score = per_block.amax(3);
  score.narrow(2, 1, NB - 1)
      .copy_(at::maximum(score.narrow(2, 1, NB - 1),
                         per_block.select(3, ratio - 1).narrow(2, 0, NB - 1)));
  return score;
}

// The K best of score (NKV, n, NB), ascending. Every row here sees more than K blocks.
at::Tensor best_blocks(at::Tensor score, const at::Tensor& position, const SparseConfig& c) {
  const at::Tensor own = position.floor_divide(c.block_size).unsqueeze(1);
  const at::Tensor block = at::arange(score.size(2), position.options()).unsqueeze(0);
  const at::Tensor forced = at::logical_or(block < c.init_blocks, block >= own - c.local_blocks());
  score.masked_fill_(forced, kInfinity).masked_fill_(block > own, -kInfinity);
  // A stable sort keeps the lower block first among equals, which top-k does not promise.
  const at::Tensor order = std::get<1>(at::sort(score, /*stable=*/true, -1, /*descending=*/true));
  return std::get<0>(at::sort(order.narrow(2, 0, c.blocks_per_token()), -1)).to(at::kInt);
}

// Blocks 0 .. own for every query: what a query that sees at most K blocks lists.
at::Tensor first_blocks(const Documents& q_docs, const Documents& k_docs, int64_t NKV,
                        const SparseConfig& c, at::Device device) {
  std::vector<int> own;
  own.reserve(q_docs.num_tokens());
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    for (int64_t i = k_docs.length(d) - q_docs.length(d); i < k_docs.length(d); ++i) {
      own.push_back(static_cast<int>(i / c.block_size));
    }
  }
  const at::Tensor last = queue_to(at::tensor(own, at::kInt), device).unsqueeze(1);
  const at::Tensor block = at::arange(c.blocks_per_token(), last.options()).unsqueeze(0);
  return at::where(block <= last, block, -1)
      .to(at::kInt)
      .unsqueeze(0)
      .expand({NKV, -1, -1})
      .contiguous();
}

}  // namespace

WindowMeans window_means(const at::Tensor& keys, const SparseConfig& config) {
  const at::ScalarType kept = keys.scalar_type(), type = accumulate_type(keys);
  const auto as_kept = [&](const at::Tensor& x) { return x.to(kept).to(type); };
  const at::Tensor halves = means(keys.to(type), config.kernel_stride);
  return {as_kept(windows(halves)), as_kept(windows(means(halves, 4)))};
}

at::Tensor best_of_windows(const at::Tensor& q_rows, const WindowMeans& means,
                           const at::Tensor& position, int64_t last_position,
                           const SparseConfig& config) {
  const int64_t keys = last_position + 1, stride = config.kernel_stride;
  const at::Tensor weight =
      window_weights(q_rows, means.fine.narrow(1, 0, keys / stride - 1),
                     means.coarse.narrow(1, 0, keys / (4 * stride) - 1), position, config);
  const int64_t NB = (keys + config.block_size - 1) / config.block_size;
  return best_blocks(pooled(weight, NB, config.block_size / stride), position, config);
}

at::Tensor block_select(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                        const Documents& k_docs, const SparseConfig& config, double scale) {
  check_queries_and_keys(q, k, q_docs, k_docs, "block_select");
  check_config(config);
  const at::NoGradGuard no_grad;
  if (block_select_kernels_run(q, k, k_docs, config, scale)) {
    return block_select_cuda(q, k, q_docs, k_docs, config, scale);
  }
  const int64_t NKV = k.size(1);
  const at::ScalarType type = accumulate_type(q);
  at::Tensor blocks = first_blocks(q_docs, k_docs, NKV, config, q.device());
  const int64_t all_listed = config.blocks_per_token() * config.block_size;
  const int64_t stride = config.kernel_stride;
  // Bytes of scores for one query and one key: a window per kernel_stride keys.
  const int64_t budget = (q.is_cuda() ? kScoreBytesCuda : kScoreBytesCpu) * stride;
  const int64_t bytes = q.size(1) * static_cast<int64_t>(at::elementSize(type));
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    const int64_t nq = q_docs.length(d), nk = k_docs.length(d);
    const int64_t first = std::max<int64_t>(all_listed - (nk - nq), 0);
    if (first >= nq) continue;
    const WindowMeans means = window_means(document_keys(k, k_docs, d), config);
    for (const QuerySlab& slab : query_slabs(q_docs, k_docs, d, first, bytes, budget)) {
      const at::Tensor position =
          at::arange(slab.position, slab.keys(), q.options().dtype(at::kLong));
      blocks.narrow(1, slab.row, slab.n)
          .copy_(best_of_windows(slab_rows(q, slab, NKV).to(type).mul(scale), means, position,
                                 slab.keys() - 1, config));
    }
  }
  return blocks;
}

}  // namespace sala
