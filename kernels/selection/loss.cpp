// The written gradient of the loss that loss.h defines, slab of queries by slab.
#include "kernels/selection/loss.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/query_slabs.h"
#include "kernels/check.h"
#include "kernels/selection/composed.h"

namespace sala {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kTiny = 1e-30;

// One document's keys, and the gradient of its compressed keys as slabs of queries add to it.
struct KeySide {
  at::Tensor keys;     // (NKV, nk, HS) fp32/fp64
  at::Tensor windows;  // (NKV, W, HS)
  at::Tensor d_windows;

  // What queries before `position` can see.
  KeySide before(int64_t position, int64_t stride) const {
    const int64_t W = std::max<int64_t>(position / stride - 1, 0);
    return {keys.narrow(1, 0, position), windows.narrow(1, 0, W), d_windows.narrow(1, 0, W)};
  }
};

// Some queries of it. Rows: (NKV, G n, HS), times the scale.
struct QuerySide {
  at::Tensor rows, position;  // position (n) int64
  int64_t G;

  // (NKV, G n, x) as (NKV, G, n, x).
  at::Tensor grouped(const at::Tensor& x) const {
    return x.view({x.size(0), G, position.size(0), x.size(2)});
  }
};

// Softmax over the columns before limit (n).
at::Tensor masked_softmax(const QuerySide& q, const at::Tensor& columns, const at::Tensor& limit) {
  at::Tensor scores = at::bmm(q.rows, columns.transpose(1, 2));
  const at::Tensor column = at::arange(columns.size(1), limit.options()).unsqueeze(0);
  q.grouped(scores).masked_fill_(column >= limit.unsqueeze(1), -kInfinity);
  return at::softmax(scores, -1);
}

at::Tensor padded(const at::Tensor& x, int64_t columns) {
  return at::constant_pad_nd(x, {0, columns - x.size(2)});
}

// Full attention's mass on each block: (NKV, n, NB).
at::Tensor block_mass(const QuerySide& q, const KeySide& k, int64_t NB, int64_t block_size) {
  const at::Tensor attention = q.grouped(masked_softmax(q, k.keys, q.position + 1)).mean(1);
  return padded(attention, NB * block_size)
      .view({attention.size(0), attention.size(1), NB, block_size})
      .sum(3);
}

// Of the blocks that may be chosen, the mass of those that are not among the `most` best: lists
// have topk + local_blocks places, and init_blocks + local_blocks + 1 of them are forced.
at::Tensor missed_mass(const at::Tensor& mass, const at::Tensor& score, const at::Tensor& choice,
                       int64_t most) {
  if (most <= 0) return mass.sum();
  if (score.size(2) <= most) return at::zeros({}, mass.options());
  const at::Tensor best =
      std::get<1>(at::where(choice, score, at::full({}, -1.0, score.options())).topk(most, 2));
  return mass.sum() - mass.gather(2, best).sum();
}

// The loss of scores (NKV, n, NB) at blocks of `mass` that are `taught` (n, NB), and its gradient.
std::pair<at::Tensor, at::Tensor> order_loss(const at::Tensor& mass, const at::Tensor& score,
                                             const at::Tensor& taught) {
  const at::Tensor in_order = mass * taught;
  const at::Tensor target = in_order.square() / in_order.sum(2, /*keepdim=*/true).clamp_min(kTiny);
  // What is not taught comes last, also behind scores of 0.
  const auto [sorted, order] =
      at::where(taught, score, at::full({}, -1.0, score.options())).sort(2, /*descending=*/true);
  const at::Tensor place = taught.sum(2, /*keepdim=*/true)
                               .floor_divide(kTaughtShare)
                               .clamp_min_(1)
                               .sub_(1)
                               .expand({score.size(0), score.size(1), 1});
  const at::Tensor bar = sorted.gather(2, place).clamp_min(kTiny);
  const at::Tensor floored = score.clamp_min(kTiny);
  const at::Tensor gap = (bar / floored).log_().add_(std::log(kTaughtMargin));
  const at::Tensor pushed = target * (gap > 0);
  at::Tensor d_score = pushed.div(floored).neg_();
  d_score.scatter_add_(2, order.gather(2, place), pushed.sum(2, /*keepdim=*/true) / bar);
  return {(pushed * gap).sum(), d_score};
}

// Loss sums of a slab; its gradient to the rows of queries, and to the windows in `k`.
at::Tensor slab_loss(const QuerySide& q, const KeySide& k, const SparseConfig& c,
                     at::Tensor& d_rows) {
  const int64_t ratio = c.block_size / c.kernel_stride;
  const int64_t NB = (k.keys.size(1) + c.block_size - 1) / c.block_size;
  const at::Tensor own = q.position.floor_divide(c.block_size).unsqueeze(1);
  const at::Tensor block = at::arange(NB, q.position.options()).unsqueeze(0);
  const at::Tensor choice =
      at::logical_and(block >= c.init_blocks, block < own - c.local_blocks()).unsqueeze(0);
  const at::Tensor taught =
      at::logical_and(block >= c.init_blocks, block < own - kNearBlocks).unsqueeze(0);

  const at::Tensor mass = block_mass(q, k, NB, c.block_size);
  const at::Tensor seen = (q.position + 1).floor_divide(c.kernel_stride).sub_(1);
  const at::Tensor weight = masked_softmax(q, k.windows, seen);
  const auto [score, at_window] = at::max_pool1d_with_indices(
      padded(q.grouped(weight).sum(1), NB * ratio), ratio + 1, ratio, /*padding=*/1);

  const auto [loss, d_score] = order_loss(mass, score, taught);
  // d_score of the chosen window of each block, back through the sum over heads and the softmax.
  const at::Tensor d_weight = at::zeros({score.size(0), score.size(1), NB * ratio}, score.options())
                                  .scatter_add_(2, at_window, d_score)
                                  .narrow(2, 0, weight.size(2))
                                  .unsqueeze(1);
  const at::Tensor grouped = q.grouped(weight);
  const at::Tensor d_logits =
      (grouped * (d_weight - (grouped * d_weight).sum(3, /*keepdim=*/true))).view(weight.sizes());
  d_rows = at::bmm(d_logits, k.windows);
  at::Tensor(k.d_windows).baddbmm_(d_logits.transpose(1, 2), q.rows);

  const at::Tensor missed = missed_mass(mass * choice, score, choice, c.topk - c.init_blocks - 1);
  return at::stack({loss, missed}).to(at::kDouble);
}

// From the gradient of windows, means of kernel_size = 2 kernel_stride keys each: (NKV, nk, HS).
at::Tensor key_gradient(const KeySide& k, int64_t stride) {
  const int64_t W = k.windows.size(1);
  at::Tensor halves = at::zeros({k.keys.size(0), W + 1, k.keys.size(2)}, k.keys.options());
  halves.narrow(1, 0, W).add_(k.d_windows);
  halves.narrow(1, 1, W).add_(k.d_windows);
  return halves.div_(2 * stride).repeat_interleave(stride, 1);
}

}  // namespace

int64_t first_taught_position(const SparseConfig& c, int64_t query_stride) {
  const int64_t choice = (c.init_blocks + kNearBlocks + 2) * c.block_size;
  return (choice / query_stride + 1) * query_stride - 1;
}

at::Tensor block_select_loss(const at::Tensor& q, const at::Tensor& k, const Documents& docs,
                             const SparseConfig& config, double scale,
                             const SelectionLossOptions& options, at::Tensor& dq, at::Tensor& dk) {
  check_queries_and_keys(q, k, docs, docs, "block_select_loss");
  const at::NoGradGuard no_grad;
  const int64_t NKV = k.size(1), G = q.size(1) / NKV;
  const at::ScalarType type = accumulate_type(q);
  const double factor = options.weight / static_cast<double>(NKV);
  at::Tensor sums = at::zeros({kNumSelectionSums}, q.options().dtype(at::kDouble));
  const int64_t bytes = q.size(1) * static_cast<int64_t>(at::elementSize(type));
  const int64_t budget = q.is_cuda() ? kSelectionLossBytesCuda : kSelectionLossBytesCpu;
  for (int64_t d = 0; d < docs.count(); ++d) {
    const int64_t nk = docs.length(d), first = first_taught_position(config, options.query_stride);
    if (first >= nk) continue;
    const at::Tensor keys = document_keys(k, docs, d);
    KeySide side{keys.to(type), window_means(keys, config).fine, {}};
    side.d_windows = at::zeros_like(side.windows);
    const int64_t count = (nk - 1 - first) / options.query_stride + 1;
    const int64_t most = std::max<int64_t>(budget / (bytes * nk), 1);
    for (int64_t i = 0; i < count; i += most) {
      const int64_t n = std::min(most, count - i);
      const at::Tensor position =
          (at::arange(i, i + n, q.options().dtype(at::kLong)) * options.query_stride).add_(first);
      const at::Tensor row = position + docs.offsets[d];
      const QuerySlab whole{d, 0, n, 0};  // of the queries that were picked
      const QuerySide queries{slab_rows(q.index_select(0, row), whole, NKV).to(type).mul_(scale),
                              position, G};
      at::Tensor d_rows;
      const int64_t seen = first + (i + n - 1) * options.query_stride + 1;
      sums.narrow(0, 0, 2).add_(
          slab_loss(queries, side.before(seen, config.kernel_stride), config, d_rows),
          1.0 / static_cast<double>(NKV));
      at::Tensor d_picked = at::empty({n, q.size(1), q.size(2)}, d_rows.options());
      put_slab_rows(d_picked, whole, d_rows.mul_(scale * factor));
      dq.index_add_(0, row, d_picked.to(dq.scalar_type()));
    }
    sums[kSelectionCount].add_(static_cast<double>(count));
    const int64_t choosing = (config.init_blocks + config.local_blocks() + 1) * config.block_size;
    const int64_t before = std::max<int64_t>(choosing - first, 0) + options.query_stride - 1;
    sums[kSelectionChoices].add_(
        static_cast<double>(std::max<int64_t>(count - before / options.query_stride, 0)));
    const at::Tensor d_keys = key_gradient(side, config.kernel_stride).mul_(factor);
    dk.narrow(0, docs.offsets[d], d_keys.size(1)).add_(d_keys.transpose(0, 1));
  }
  return sums;
}

}  // namespace sala
