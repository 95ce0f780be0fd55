// Attention with scores in memory works on slabs: a run of queries of one document against the keys
// they can see, as many queries as a byte budget for the scores allows. KV heads are the batch, and
// a KV head's G query heads and the slab's n queries are the rows, so that K and V are never
// repeated.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/check.h"
#include "kernels/documents.h"

namespace sala {

struct QuerySlab {
  int64_t doc;
  int64_t row, n;                                // queries [row, row + n) of the packed queries
  int64_t position;                              // place of the first of them within the document
  int64_t keys() const { return position + n; }  // that the last of them sees
};

constexpr int64_t kFewestQueries = 32;

// Slabs of document `doc` from query `first` on, at most budget_bytes / bytes_per_pair pairs of a
// query and a key each, but never fewer than kFewestQueries: a slab reads all keys once.
inline std::vector<QuerySlab> query_slabs(const Documents& q_docs, const Documents& k_docs,
                                          int64_t doc, int64_t first, int64_t bytes_per_pair,
                                          int64_t budget_bytes) {
  const int64_t nq = q_docs.length(doc), nk = k_docs.length(doc);
  const int64_t most = std::max<int64_t>(budget_bytes / (bytes_per_pair * nk), kFewestQueries);
  std::vector<QuerySlab> slabs;
  for (int64_t i = first; i < nq; i += most) {
    const int64_t n = std::min(most, nq - i);
    slabs.push_back({doc, q_docs.offsets[doc] + i, n, nk - nq + i});
  }
  return slabs;
}

// Rows [slab.row, slab.row + n) of x (Tq, NH, HS) -> (NKV, G * n, HS).
inline at::Tensor slab_rows(const at::Tensor& x, const QuerySlab& slab, int64_t NKV) {
  return x.narrow(0, slab.row, slab.n)
      .view({slab.n, NKV, x.size(1) / NKV, x.size(2)})
      .permute({1, 2, 0, 3})
      .reshape({NKV, -1, x.size(2)});
}

// The inverse, with the cast to x's dtype.
inline void put_slab_rows(at::Tensor& x, const QuerySlab& slab, const at::Tensor& rows) {
  const int64_t NKV = rows.size(0), G = x.size(1) / NKV;
  x.narrow(0, slab.row, slab.n)
      .view({slab.n, NKV, G, x.size(2)})
      .copy_(rows.view({NKV, G, slab.n, x.size(2)}).permute({2, 0, 1, 3}));
}

// Rows of one document of x (Tk, NKV, HS) -> (NKV, nk, HS).
inline at::Tensor document_keys(const at::Tensor& x, const Documents& k_docs, int64_t doc) {
  return x.narrow(0, k_docs.offsets[doc], k_docs.length(doc)).transpose(0, 1).contiguous();
}

// The contract that the sparse ops share.
inline void check_queries_and_keys(const at::Tensor& q, const at::Tensor& k,
                                   const Documents& q_docs, const Documents& k_docs,
                                   const char* op) {
  check_input(q, 3, op, "q");
  check_input(k, 3, op, "k");
  check_like(k, q, op, "k");
  TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0 && q.size(2) == k.size(2), op,
              ": expected k of q's head size and a divisor of its heads, got q ", q.sizes(),
              " and k ", k.sizes());
  TORCH_CHECK(q_docs.count() == k_docs.count() && q_docs.num_tokens() == q.size(0) &&
                  k_docs.num_tokens() == k.size(0),
              op, ": expected documents that match ", q.size(0), " queries and ", k.size(0),
              " keys, got ", q_docs.count(), " documents of ", q_docs.num_tokens(), " and ",
              k_docs.count(), " of ", k_docs.num_tokens());
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    TORCH_CHECK(q_docs.length(d) <= k_docs.length(d), op, ": expected at most as many queries as ",
                "keys in document ", d, ", got ", q_docs.length(d), " and ", k_docs.length(d));
  }
}

// Slabs of one document whose scores for all heads stay within a budget of bytes.
inline std::vector<QuerySlab> attention_slabs(const at::Tensor& q, const Documents& q_docs,
                                              const Documents& k_docs, int64_t doc) {
  const int64_t bytes = q.size(1) * static_cast<int64_t>(at::elementSize(accumulate_type(q)));
  const int64_t budget = q.is_cuda() ? int64_t{256} << 20 : int64_t{4} << 20;
  return query_slabs(q_docs, k_docs, doc, 0, bytes, budget);
}

}  // namespace sala
