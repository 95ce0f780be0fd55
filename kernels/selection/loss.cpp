// The written gradient of the loss that loss.h defines. Documents of about one length go side by
// side, shorter ones padded to the longest, in slabs of queries: a micro-batch of short documents
// would else be thousands of small calls.
#include "kernels/selection/loss.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/query_slabs.h"
#include "kernels/check.h"
#include "kernels/selection/composed.h"
#include "kernels/to_device.h"

namespace sala {

namespace {

constexpr double kTiny = 1e-30;

// The positions whose queries are taught.
struct Taught {
  int64_t first, stride;
  int64_t before(int64_t position) const {  // how many of them
    return position > first ? (position - 1 - first) / stride + 1 : 0;
  }
};

// D documents, the longest first, none of them less than half as long. The queries of one are its
// positions begin to length - 1; that of position p is row row_of_0 + p of q.
struct Group {
  std::vector<int64_t> row_of_0, first_key, begin, length;
  int64_t count() const { return static_cast<int64_t>(length.size()); }
  int64_t longest() const { return length.front(); }
};

// Of the documents with a query to teach.
std::vector<Group> groups_of(const Documents& q_docs, const Documents& k_docs,
                             const Taught& taught) {
  const auto begin_of = [&](int64_t d) { return k_docs.length(d) - q_docs.length(d); };
  std::vector<int64_t> which;
  for (int64_t d = 0; d < k_docs.count(); ++d) {
    if (taught.before(k_docs.length(d)) > taught.before(begin_of(d))) which.push_back(d);
  }
  std::ranges::stable_sort(which, std::greater<>(), [&](int64_t d) { return k_docs.length(d); });
  std::vector<Group> groups;
  for (int64_t d : which) {
    if (groups.empty() || 2 * k_docs.length(d) < groups.back().longest()) groups.emplace_back();
    Group& group = groups.back();
    group.row_of_0.push_back(q_docs.offsets[d] - begin_of(d));
    group.first_key.push_back(k_docs.offsets[d]);
    group.begin.push_back(begin_of(d));
    group.length.push_back(k_docs.length(d));
  }
  return groups;
}

// A group's keys, B = D * NKV of them, and the gradient of its compressed keys as slabs of queries
// add to it. What lies behind a document's end is seen by none of its queries.
struct KeySide {
  at::Tensor keys;     // (B, nk, HS) fp32/fp64
  at::Tensor windows;  // (B, W, HS)
  at::Tensor d_windows;

  // What queries before `position` can see.
  KeySide before(int64_t position, int64_t stride) const {
    const int64_t W = std::max<int64_t>(position / stride - 1, 0);
    return {keys.narrow(1, 0, position), windows.narrow(1, 0, W), d_windows.narrow(1, 0, W)};
  }
};

// Some queries of each document. Rows: (B, G n, HS), times the scale.
struct QuerySide {
  at::Tensor rows;
  at::Tensor position;  // (D, n) int64; where a document has no such query, its nearest
  at::Tensor inside;    // (D, n): the others
  int64_t NKV, G;

  int64_t num_docs() const { return position.size(0); }
  int64_t n() const { return position.size(1); }
  // (B, G n, x) as (D, NKV, G, n, x).
  at::Tensor grouped(const at::Tensor& x) const {
    return x.view({num_docs(), NKV, G, n(), x.size(2)});
  }
  // (B, n, x) as (D, NKV, n, x).
  at::Tensor by_document(const at::Tensor& x) const {
    return x.view({num_docs(), NKV, n(), x.size(2)});
  }
};

// Softmax over the columns before limit (D, n).
at::Tensor masked_softmax(const QuerySide& q, const at::Tensor& columns, const at::Tensor& limit) {
  at::Tensor scores = at::bmm(q.rows, columns.transpose(1, 2));
  const at::Tensor column = at::arange(columns.size(1), limit.options());
  q.grouped(scores).masked_fill_(column >= limit.view({q.num_docs(), 1, 1, q.n(), 1}),
                                 -std::numeric_limits<double>::infinity());
  return at::softmax(scores, -1);
}

at::Tensor padded(const at::Tensor& x, int64_t columns) {
  return at::constant_pad_nd(x, {0, columns - x.size(-1)});
}

// Full attention's mass on each block: (D, NKV, n, NB).
at::Tensor block_mass(const QuerySide& q, const KeySide& k, int64_t NB, int64_t block_size) {
  const at::Tensor attention = q.grouped(masked_softmax(q, k.keys, q.position + 1)).mean(2);
  return padded(attention, NB * block_size)
      .view({q.num_docs(), q.NKV, q.n(), NB, block_size})
      .sum(4);
}

// Of the blocks that may be chosen, the mass of those that are not among the `most` best: lists
// have topk + local_blocks places, and init_blocks + local_blocks + 1 of them are forced.
at::Tensor missed_mass(const at::Tensor& mass, const at::Tensor& score, const at::Tensor& choice,
                       int64_t most) {
  if (most <= 0) return mass.sum();
  if (score.size(3) <= most) return at::zeros({}, mass.options());
  const at::Tensor best =
      std::get<1>(at::where(choice, score, at::full({}, -1.0, score.options())).topk(most, 3));
  return mass.sum() - mass.gather(3, best).sum();
}

// The loss of scores (D, NKV, n, NB) at blocks of `mass` that are `taught` (D, 1, n, NB), and its
// gradient.
std::pair<at::Tensor, at::Tensor> order_loss(const at::Tensor& mass, const at::Tensor& score,
                                             const at::Tensor& taught) {
  const at::Tensor in_order = mass * taught;
  const at::Tensor target = in_order.square() / in_order.sum(3, /*keepdim=*/true).clamp_min(kTiny);
  // What is not taught comes last, also behind scores of 0.
  const auto [sorted, order] =
      at::where(taught, score, at::full({}, -1.0, score.options())).sort(3, /*descending=*/true);
  const at::Tensor place = taught.sum(3, /*keepdim=*/true)
                               .floor_divide(kTaughtShare)
                               .clamp_min_(1)
                               .sub_(1)
                               .expand({score.size(0), score.size(1), score.size(2), 1});
  const at::Tensor bar = sorted.gather(3, place).clamp_min(kTiny);
  const at::Tensor floored = score.clamp_min(kTiny);
  const at::Tensor gap = (bar / floored).log_().add_(std::log(kTaughtMargin));
  const at::Tensor pushed = target * (gap > 0);
  at::Tensor d_score = pushed.div(floored).neg_();
  d_score.scatter_add_(3, order.gather(3, place), pushed.sum(3, /*keepdim=*/true) / bar);
  return {(pushed * gap).sum(), d_score};
}

// Loss sums of a slab; its gradient to the rows of queries, and to the windows in `k`.
at::Tensor slab_loss(const QuerySide& q, const KeySide& k, const SparseConfig& c,
                     at::Tensor& d_rows) {
  const int64_t ratio = c.block_size / c.kernel_stride;
  const int64_t NB = (k.keys.size(1) + c.block_size - 1) / c.block_size;
  const at::Tensor own = q.position.floor_divide(c.block_size).unsqueeze(2);
  const at::Tensor block = at::arange(NB, q.position.options());
  const at::Tensor may = at::logical_and(block >= c.init_blocks, q.inside.unsqueeze(2));
  const at::Tensor choice = at::logical_and(may, block < own - c.local_blocks()).unsqueeze(1);
  const at::Tensor taught = at::logical_and(may, block < own - kNearBlocks).unsqueeze(1);

  const at::Tensor mass = block_mass(q, k, NB, c.block_size);
  const at::Tensor seen = (q.position + 1).floor_divide(c.kernel_stride).sub_(1);
  const at::Tensor weight = masked_softmax(q, k.windows, seen);
  const at::Tensor grouped = q.grouped(weight);
  const auto [pooled, at_window] = at::max_pool1d_with_indices(
      padded(grouped.sum(2).flatten(0, 1), NB * ratio), ratio + 1, ratio, /*padding=*/1);
  const at::Tensor score = q.by_document(pooled);

  const auto [loss, d_score] = order_loss(mass, score, taught);
  // d_score of the chosen window of each block, back through the sum over heads and the softmax.
  const at::Tensor d_weight = at::zeros({q.num_docs(), q.NKV, q.n(), NB * ratio}, score.options())
                                  .scatter_add_(3, q.by_document(at_window), d_score)
                                  .narrow(3, 0, weight.size(2))
                                  .unsqueeze(2);
  const at::Tensor d_logits =
      (grouped * (d_weight - (grouped * d_weight).sum(4, /*keepdim=*/true))).view(weight.sizes());
  d_rows = at::bmm(d_logits, k.windows);
  at::Tensor(k.d_windows).baddbmm_(d_logits.transpose(1, 2), q.rows);

  const at::Tensor missed = missed_mass(mass * choice, score, choice, c.topk - c.init_blocks - 1);
  return at::stack({loss, missed}).to(at::kDouble);
}

// From the gradient of windows, means of kernel_size = 2 kernel_stride keys each: (B, nk, HS).
at::Tensor key_gradient(const KeySide& k, int64_t stride) {
  const int64_t W = k.windows.size(1);
  at::Tensor halves = at::zeros({k.keys.size(0), W + 1, k.keys.size(2)}, k.keys.options());
  halves.narrow(1, 0, W).add_(k.d_windows);
  halves.narrow(1, 1, W).add_(k.d_windows);
  return halves.div_(2 * stride).repeat_interleave(stride, 1);
}

// One call of block_select_loss.
struct Call {
  const at::Tensor &q, &k;
  const SparseConfig& config;
  double scale;
  SelectionLossOptions options;
  Taught taught;
  at::Tensor &dq, &dk;

  int64_t NKV() const { return k.size(1); }
  int64_t G() const { return q.size(1) / NKV(); }
  double factor() const { return options.weight / static_cast<double>(NKV()); }
};

// Rows (T, N, HS) at (D, n), as (D * NKV, G n, HS) in fp32 (fp64).
at::Tensor rows_at(const Call& call, const at::Tensor& x, const at::Tensor& row) {
  const int64_t D = row.size(0), n = row.size(1), NKV = call.NKV(), HS = x.size(2);
  return x.index_select(0, row.view({-1}))
      .to(accumulate_type(x))
      .view({D, n, NKV, x.size(1) / NKV, HS})
      .permute({0, 2, 3, 1, 4})
      .reshape({D * NKV, -1, HS});
}

// Adds the loss of a group to the first two of `sums`.
void teach_group(const Call& call, const Group& group, const at::Tensor& sums) {
  const auto& [q, k, config, scale, options, taught, dq, dk] = call;
  const int64_t D = group.count(), nk = group.longest(), NKV = call.NKV(), HS = q.size(2);
  const auto column = [&](const std::vector<int64_t>& values) {  // (D, 1)
    return queue_to(at::tensor(values), q.device()).unsqueeze(1);
  };
  const at::Tensor begin = column(group.begin), last = column(group.length) - 1;
  const at::Tensor row_of_0 = column(group.row_of_0);
  const at::Tensor token = at::minimum(at::arange(nk, last.options()).unsqueeze(0), last);
  KeySide side;
  side.keys = rows_at(call, k, column(group.first_key) + token);
  side.windows = window_means(side.keys.to(k.scalar_type()), config).fine;
  side.d_windows = at::zeros_like(side.windows);

  const int64_t bytes = D * q.size(1) * static_cast<int64_t>(side.keys.element_size()) * nk;
  const int64_t budget = q.is_cuda() ? kSelectionLossBytesCuda : kSelectionLossBytesCpu;
  const int64_t most = std::max<int64_t>(budget / bytes, 1);
  const int64_t end = taught.before(nk);
  for (int64_t i = taught.before(std::ranges::min(group.begin)); i < end; i += most) {
    const int64_t n = std::min(most, end - i);
    const at::Tensor wanted =
        (at::arange(i, i + n, last.options()) * taught.stride).add_(taught.first).unsqueeze(0);
    const at::Tensor position = at::maximum(at::minimum(wanted, last), begin);
    const at::Tensor row = row_of_0 + position;
    const QuerySide queries{rows_at(call, q, row).mul_(scale), position, position == wanted, NKV,
                            call.G()};
    const int64_t seen = taught.first + (i + n - 1) * taught.stride + 1;
    at::Tensor d_rows;
    sums.narrow(0, 0, 2).add_(
        slab_loss(queries, side.before(seen, config.kernel_stride), config, d_rows),
        1.0 / static_cast<double>(NKV));
    dq.index_add_(0, row.view({-1}),
                  queries.grouped(d_rows.mul_(scale * call.factor()))
                      .permute({0, 3, 1, 2, 4})
                      .reshape({D * n, q.size(1), HS})
                      .to(dq.scalar_type()));
  }
  const at::Tensor d_keys = key_gradient(side, config.kernel_stride).mul_(call.factor());
  for (int64_t d = 0; d < D; ++d) {
    const int64_t tokens = std::min(group.length[d], d_keys.size(1));
    dk.narrow(0, group.first_key[d], tokens)
        .add_(d_keys.narrow(0, d * NKV, NKV).narrow(1, 0, tokens).transpose(0, 1));
  }
}

}  // namespace

int64_t first_taught_position(const SparseConfig& c, int64_t query_stride) {
  const int64_t choice = (c.init_blocks + kNearBlocks + 2) * c.block_size;
  return (choice / query_stride + 1) * query_stride - 1;
}

at::Tensor block_select_loss(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, const SparseConfig& config, double scale,
                             const SelectionLossOptions& options, at::Tensor& dq, at::Tensor& dk) {
  check_queries_and_keys(q, k, q_docs, k_docs, "block_select_loss");
  const at::NoGradGuard no_grad;
  const Taught taught{first_taught_position(config, options.query_stride), options.query_stride};
  const Call call{q, k, config, scale, options, taught, dq, dk};
  const at::Tensor sums = at::zeros({kNumSelectionSums}, q.options().dtype(at::kDouble));
  const int64_t choosing = (config.init_blocks + config.local_blocks() + 1) * config.block_size;
  int64_t queries = 0, choices = 0;
  for (const Group& group : groups_of(q_docs, k_docs, taught)) {
    teach_group(call, group, sums);
    for (int64_t d = 0; d < group.count(); ++d) {
      const int64_t begin = group.begin[d], end = taught.before(group.length[d]);
      queries += end - taught.before(begin);
      choices += std::max<int64_t>(end - taught.before(std::max(begin, choosing)), 0);
    }
  }
  sums[kSelectionCount].fill_(static_cast<double>(queries));
  sums[kSelectionChoices].fill_(static_cast<double>(choices));
  return sums;
}

}  // namespace sala
