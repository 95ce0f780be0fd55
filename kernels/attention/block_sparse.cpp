// Attention over listed blocks: the kernels of block_sparse_launch.h where they take the call, else
// a composition of LibTorch ops, as dense attention with a mask, slab by slab (query_slabs.h): the
// lists become a mask of slab x keys, and memory stays O(slab * keys). The backward recomputes P
// from the log-sum-exp; sums over slabs happen in order, so it is deterministic.
//   P = exp(scale q k^T - lse);  dv = P^T do;  dS = P o (do v^T - rowsum(do o o));
//   dq = scale dS k;  dk = scale dS^T q

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <limits>

#include "kernels/attention/block_sparse_cuda.h"
#include "kernels/attention/query_slabs.h"
#include "kernels/batched_gemm.h"
#include "kernels/check.h"
#include "kernels/ops.h"

namespace sala {

namespace {

// True where a query of the slab must not look: (NKV, 1, n, keys).
at::Tensor hidden_keys(const at::Tensor& blocks, const QuerySlab& slab, int64_t block_size) {
  const int64_t NKV = blocks.size(0), keys = slab.keys();
  const int64_t NB = (keys + block_size - 1) / block_size;
  const auto index = blocks.options().dtype(at::kLong);
  at::Tensor list = blocks.narrow(1, slab.row, slab.n).to(at::kLong);  // (NKV, n, K)
  list = list.masked_fill((list < 0).logical_or_(list >= NB), NB);     // padding: a column too many
  at::Tensor listed = at::zeros({NKV, slab.n, NB + 1}, blocks.options().dtype(at::kBool));
  listed.scatter_(2, list, true);
  const at::Tensor place = at::arange(keys, index);
  const at::Tensor seen = listed.index_select(2, place.floor_divide(block_size));
  const at::Tensor query = at::arange(slab.position, slab.position + slab.n, index);
  const at::Tensor future = place.unsqueeze(0) > query.unsqueeze(1);
  return seen.logical_not().logical_or_(future).unsqueeze(1);
}

// scale * q k^T with -inf where hidden: (NKV, G * n, keys) fp32/fp64.
at::Tensor slab_scores(const at::Tensor& q_rows, const at::Tensor& keys, const at::Tensor& hidden,
                       double scale) {
  at::Tensor scores = bmm_wide(q_rows, keys.transpose(1, 2)).mul_(scale);
  scores.view({scores.size(0), -1, hidden.size(2), hidden.size(3)})
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
  return scores;
}

void check_door(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                const at::Tensor& blocks, const Documents& q_docs, const Documents& k_docs,
                int64_t block_size, const char* op) {
  check_queries_and_keys(q, k, q_docs, k_docs, op);
  check_same(v, k, op, "v");
  TORCH_CHECK(block_size > 0, op, ": expected a positive block size, got ", block_size);
  TORCH_CHECK(blocks.defined() && blocks.scalar_type() == at::kInt && blocks.dim() == 3 &&
                  blocks.size(0) == k.size(1) && blocks.size(1) == q.size(0) &&
                  blocks.device() == q.device(),
              op, ": expected int32 blocks (", k.size(1), ", ", q.size(0), ", K) on ", q.device());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> block_sparse_attention_forward(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& blocks,
    const Documents& q_docs, const Documents& k_docs, int64_t block_size, double scale) {
  check_door(q, k, v, blocks, q_docs, k_docs, block_size, "block_sparse_attention_forward");
  const at::NoGradGuard no_grad;
  if (block_sparse_kernels_run(q, k, block_size, scale)) {
    return block_sparse_forward_cuda(q, k, v, blocks, q_docs, k_docs, scale);
  }
  const int64_t NKV = k.size(1), G = q.size(1) / NKV;
  at::Tensor o = at::empty_like(q);
  at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(accumulate_type(q)));
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    const at::Tensor keys = document_keys(k, k_docs, d), values = document_keys(v, k_docs, d);
    for (const QuerySlab& slab : attention_slabs(q, q_docs, k_docs, d)) {
      const at::Tensor hidden = hidden_keys(blocks, slab, block_size);
      at::Tensor p =
          slab_scores(slab_rows(q, slab, NKV), keys.narrow(1, 0, slab.keys()), hidden, scale);
      const at::Tensor top = p.amax(2, /*keepdim=*/true);
      p.sub_(top).exp_();
      const at::Tensor sum = p.sum(2, /*keepdim=*/true);
      const at::Tensor rows =
          bmm_wide(p.to(q.scalar_type()), values.narrow(1, 0, slab.keys())).div_(sum);
      put_slab_rows(o, slab, rows);
      lse.view({NKV, G, -1})
          .narrow(2, slab.row, slab.n)
          .copy_(sum.log().add_(top).view({NKV, G, slab.n}));
    }
  }
  return {o, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_attention_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const at::Tensor& blocks, const Documents& q_docs,
    const Documents& k_docs, int64_t block_size, double scale) {
  const char* op = "block_sparse_attention_backward";
  check_door(q, k, v, blocks, q_docs, k_docs, block_size, op);
  check_same(d_o, q, op, "d_o");
  check_same(o, q, op, "o");
  check_statistic(lse, {q.size(1), q.size(0)}, q, op, "lse");
  const at::NoGradGuard no_grad;
  if (block_sparse_kernels_run(q, k, block_size, scale)) {
    return block_sparse_backward_cuda(d_o, q, k, v, o, lse, blocks, q_docs, k_docs, scale);
  }
  const int64_t NKV = k.size(1), G = q.size(1) / NKV;
  const at::ScalarType dtype = q.scalar_type();
  at::Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    const at::Tensor keys = document_keys(k, k_docs, d), values = document_keys(v, k_docs, d);
    at::Tensor dk_sum = at::zeros(keys.sizes(), lse.options());
    at::Tensor dv_sum = at::zeros(keys.sizes(), lse.options());
    for (const QuerySlab& slab : attention_slabs(q, q_docs, k_docs, d)) {
      const at::Tensor hidden = hidden_keys(blocks, slab, block_size);
      const at::Tensor q_rows = slab_rows(q, slab, NKV), g_rows = slab_rows(d_o, slab, NKV);
      const at::Tensor seen_keys = keys.narrow(1, 0, slab.keys());
      const at::Tensor seen_values = values.narrow(1, 0, slab.keys());
      at::Tensor p = slab_scores(q_rows, seen_keys, hidden, scale);
      p.sub_(lse.view({NKV, G, -1}).narrow(2, slab.row, slab.n).reshape({NKV, -1, 1})).exp_();
      at::Tensor dv_part = dv_sum.narrow(1, 0, slab.keys());
      add_bmm_wide(dv_part, p.to(dtype).transpose(1, 2), g_rows);

      const at::Tensor delta =
          g_rows.to(lse.scalar_type()).mul(slab_rows(o, slab, NKV)).sum(2, /*keepdim=*/true);
      at::Tensor ds = bmm_wide(g_rows, seen_values.transpose(1, 2)).sub_(delta).mul_(p).mul_(scale);
      ds = ds.to(dtype);
      put_slab_rows(dq, slab, bmm_wide(ds, seen_keys));
      at::Tensor dk_part = dk_sum.narrow(1, 0, slab.keys());
      add_bmm_wide(dk_part, ds.transpose(1, 2), q_rows);
    }
    dk.narrow(0, k_docs.offsets[d], k_docs.length(d)).copy_(dk_sum.transpose(0, 1));
    dv.narrow(0, k_docs.offsets[d], k_docs.length(d)).copy_(dv_sum.transpose(0, 1));
  }
  return {dq, dk, dv};
}

}  // namespace sala
