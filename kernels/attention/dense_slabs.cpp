// Query slabs of one document: scores of a slab against the keys that its last query sees, masked
// in the upper right corner, in fp32 or fp64.

#include "kernels/attention/dense_slabs.h"

#include <limits>

#include "kernels/attention/query_slabs.h"
#include "kernels/batched_gemm.h"

namespace sala {
namespace {

// scale * q k^T (NKV, G * n, keys), -inf where a key lies after its query.
at::Tensor causal_scores(const at::Tensor& q_rows, const at::Tensor& keys, const QuerySlab& slab,
                         double scale) {
  at::Tensor scores = bmm_wide(q_rows, keys.transpose(1, 2)).mul_(scale);
  const auto index = scores.options().dtype(at::kLong);
  const at::Tensor query = at::arange(slab.position, slab.position + slab.n, index);
  const at::Tensor future = at::arange(slab.keys(), index).unsqueeze(0) > query.unsqueeze(1);
  scores.view({scores.size(0), -1, slab.n, slab.keys()})
      .masked_fill_(future, -std::numeric_limits<double>::infinity());
  return scores;
}

// The slab's part of lse (NH, Tq), one value per row: (NKV, G, n).
at::Tensor lse_rows(const at::Tensor& lse, const QuerySlab& slab, int64_t NKV) {
  return lse.view({NKV, lse.size(0) / NKV, lse.size(1)}).narrow(2, slab.row, slab.n);
}

}  // namespace

void dense_slabs_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const Documents& q_docs, const Documents& k_docs, int64_t doc,
                         double scale, at::Tensor& o, at::Tensor& lse) {
  const int64_t NKV = k.size(1);
  const at::Tensor keys = document_keys(k, k_docs, doc), values = document_keys(v, k_docs, doc);
  for (const QuerySlab& slab : attention_slabs(q, q_docs, k_docs, doc)) {
    at::Tensor p =
        causal_scores(slab_rows(q, slab, NKV), keys.narrow(1, 0, slab.keys()), slab, scale);
    const at::Tensor sums = at::logsumexp(p, 2, /*keepdim=*/true);
    p.sub_(sums).exp_();
    put_slab_rows(o, slab, bmm_wide(p.to(q.scalar_type()), values.narrow(1, 0, slab.keys())));
    at::Tensor rows = lse_rows(lse, slab, NKV);
    rows.copy_(sums.view(rows.sizes()));
  }
}

void dense_slabs_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                          const Documents& q_docs, const Documents& k_docs, int64_t doc,
                          double scale, DenseGradients& out) {
  const int64_t NKV = k.size(1);
  const at::Tensor keys = document_keys(k, k_docs, doc), values = document_keys(v, k_docs, doc);
  at::Tensor dk = at::zeros(keys.sizes(), lse.options());
  at::Tensor dv = at::zeros(keys.sizes(), lse.options());
  for (const QuerySlab& slab : attention_slabs(q, q_docs, k_docs, doc)) {
    const at::Tensor q_rows = slab_rows(q, slab, NKV), d_o_rows = slab_rows(d_o, slab, NKV);
    const at::Tensor seen_keys = keys.narrow(1, 0, slab.keys());
    at::Tensor p = causal_scores(q_rows, seen_keys, slab, scale);
    p.sub_(lse_rows(lse, slab, NKV).reshape({NKV, -1, 1})).exp_();
    at::Tensor dv_seen = dv.narrow(1, 0, slab.keys());
    add_bmm_wide(dv_seen, p.to(q.scalar_type()).transpose(1, 2), d_o_rows);
    const at::Tensor shared =
        d_o_rows.to(lse.scalar_type()).mul(slab_rows(o, slab, NKV)).sum(2, /*keepdim=*/true);
    const at::Tensor dp = bmm_wide(d_o_rows, values.narrow(1, 0, slab.keys()).transpose(1, 2));
    const at::Tensor ds = dp.sub(shared).mul_(p).mul_(scale).to(q.scalar_type());
    put_slab_rows(out.dq, slab, bmm_wide(ds, seen_keys));
    at::Tensor dk_seen = dk.narrow(1, 0, slab.keys());
    add_bmm_wide(dk_seen, ds.transpose(1, 2), q_rows);
  }
  const int64_t begin = k_docs.offsets[doc], n = k_docs.length(doc);
  out.dk.narrow(0, begin, n).copy_(dk.transpose(0, 1));
  out.dv.narrow(0, begin, n).copy_(dv.transpose(0, 1));
}

}  // namespace sala
