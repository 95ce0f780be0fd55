// Causal softmax attention within each document, three ways:
//   CUDA bf16             one call of the variable-length flash kernel (FlashAttention-2, Dao 2023)
//   CPU, nq = nk          LibTorch's CPU flash kernel, one call per document
//   everything else       query slabs per document: scores of one slab at a time, in fp32 or fp64
// With P = exp(scale q k^T - lse) and D = rowsum(dO * O): dV = P^T dO, dS = P * (dO V^T - D),
// dQ = scale dS K, dK = scale dS^T Q.

#include <ATen/Context.h>

#include <algorithm>

#include "kernels/check.h"
#include "kernels/ops.h"

namespace sala {
namespace {

constexpr int64_t kSlabBytes = 64 << 20;  // scores of one slab

struct Heads {
  int64_t NH, NKV, G, HS;
};

Heads heads_of(const at::Tensor& q, const at::Tensor& k) {
  return {q.size(1), k.size(1), q.size(1) / k.size(1), q.size(2)};
}

Heads check_door(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const Documents& q_docs, const Documents& k_docs) {
  const char* op = "dense_attention";
  check_input(q, 3, op, "q");
  check_input(k, 3, op, "k");
  check_same(v, k, op, "v");
  check_like(k, q, op, "k");
  TORCH_CHECK(q.size(2) == k.size(2), op, ": expected one head size, got ", q.size(2), " for q and ",
              k.size(2), " for k");
  TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, op, ": expected a whole number of query ",
              "heads per KV head, got ", q.size(1), " and ", k.size(1));
  TORCH_CHECK(q_docs.count() == k_docs.count(), op, ": expected as many documents of queries as of ",
              "keys, got ", q_docs.count(), " and ", k_docs.count());
  TORCH_CHECK(q_docs.num_tokens() == q.size(0) && k_docs.num_tokens() == k.size(0), op,
              ": expected documents of ", q.size(0), " queries and ", k.size(0), " keys, got ",
              q_docs.num_tokens(), " and ", k_docs.num_tokens());
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    TORCH_CHECK(q_docs.length(d) <= k_docs.length(d), op, ": expected no more queries than keys, ",
                "document ", d, " has ", q_docs.length(d), " and ", k_docs.length(d));
  }
  return heads_of(q, k);
}

bool use_flash(const at::Tensor& q) {
  if (!q.is_cuda() || q.scalar_type() != at::kBFloat16) return false;
  TORCH_CHECK(q.size(2) % 8 == 0 && q.size(2) <= 256, "dense_attention: the flash kernel takes head ",
              "sizes that are multiples of 8 up to 256, got ", q.size(2));
  return true;
}

bool use_cpu_flash(const at::Tensor& q, int64_t nq, int64_t nk) {
  return q.is_cpu() && nq == nk && accumulate_type(q) == q.scalar_type();
}

// One document of (T, N, HS) as (NKV, N / NKV, n, HS): KV heads play the batch.
at::Tensor grouped(const at::Tensor& x, const Documents& docs, int64_t d, int64_t NKV) {
  const int64_t n = docs.length(d);
  return x.narrow(0, docs.offsets[d], n)
      .view({n, NKV, x.size(1) / NKV, x.size(2)})
      .permute({1, 2, 0, 3});
}

// One document of (NH, T) as (NKV, G, n).
at::Tensor grouped_rows(const at::Tensor& x, const Documents& docs, int64_t d, int64_t NKV) {
  return x.view({NKV, x.size(0) / NKV, x.size(1)}).narrow(2, docs.offsets[d], docs.length(d));
}

// The queries [begin, end) of a document, with G and the queries folded into rows of one product.
struct Slab {
  int64_t begin, end, num_keys;  // the last query of the slab sees num_keys keys
};

std::vector<Slab> slabs(int64_t NH, int64_t nq, int64_t nk, int64_t bytes_per_score) {
  const int64_t rows = std::clamp<int64_t>(kSlabBytes / (NH * nk * bytes_per_score), 1, nq);
  std::vector<Slab> result;
  for (int64_t begin = 0; begin < nq; begin += rows) {
    const int64_t end = std::min(begin + rows, nq);
    result.push_back({begin, end, nk - nq + end});
  }
  return result;
}

// (NKV, G, n, HS) rows [begin, end) as (NKV, G * rows, HS) in the type of the maths.
at::Tensor folded(const at::Tensor& x, const Slab& slab, at::ScalarType type) {
  const int64_t rows = slab.end - slab.begin;
  return x.narrow(2, slab.begin, rows).reshape({x.size(0), x.size(1) * rows, -1}).to(type);
}

// Scores (NKV, G * rows, num_keys) with -inf where a key lies after its query.
at::Tensor masked_scores(const at::Tensor& q_KRH, const at::Tensor& k_KTH, const Slab& slab,
                         double scale) {
  const int64_t rows = slab.end - slab.begin;
  at::Tensor scores = at::bmm(q_KRH, k_KTH.transpose(1, 2)).mul_(scale);
  const at::Tensor row = at::arange(rows, scores.options().dtype(at::kLong)).unsqueeze(1);
  const at::Tensor column = at::arange(slab.num_keys, row.options());
  const at::Tensor hidden = column.gt(row + (slab.num_keys - rows));
  scores.view({scores.size(0), -1, rows, slab.num_keys})
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
  return scores;
}

void forward_slabs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                   at::Tensor o, at::Tensor lse) {
  const auto type = lse.scalar_type();
  const int64_t nq = q.size(2), nk = k.size(2);
  const at::Tensor k_KTH = k.squeeze(1).to(type), v_KTH = v.squeeze(1).to(type);
  for (const Slab& slab : slabs(q.size(0) * q.size(1), nq, nk, lse.element_size())) {
    const int64_t rows = slab.end - slab.begin;
    at::Tensor p = masked_scores(folded(q, slab, type), k_KTH.narrow(1, 0, slab.num_keys), slab,
                                 scale);
    const at::Tensor lse_KR1 = at::logsumexp(p, 2, /*keepdim=*/true);
    p.sub_(lse_KR1).exp_();
    const at::Tensor o_KRH = at::bmm(p, v_KTH.narrow(1, 0, slab.num_keys));
    o.narrow(2, slab.begin, rows).copy_(o_KRH.view({q.size(0), q.size(1), rows, -1}));
    lse.narrow(2, slab.begin, rows).copy_(lse_KR1.view({q.size(0), q.size(1), rows}));
  }
}

struct Gradients {
  at::Tensor dq, dk, dv;  // of the whole call or views of one document
};

// d_o, q, o, dq (NKV, G, nq, HS), k, v, dk, dv (NKV, 1, nk, HS), lse (NKV, G, nq).
void backward_slabs(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse, double scale,
                    const Gradients& out) {
  const auto type = lse.scalar_type();
  const int64_t nq = q.size(2), nk = k.size(2);
  const at::Tensor k_KTH = k.squeeze(1).to(type), v_KTH = v.squeeze(1).to(type);
  at::Tensor dk = at::zeros(k_KTH.sizes(), k_KTH.options());
  at::Tensor dv = at::zeros_like(dk);
  for (const Slab& slab : slabs(q.size(0) * q.size(1), nq, nk, lse.element_size())) {
    const int64_t rows = slab.end - slab.begin;
    const at::Tensor q_KRH = folded(q, slab, type), d_o_KRH = folded(d_o, slab, type);
    const at::Tensor keys = k_KTH.narrow(1, 0, slab.num_keys);
    const at::Tensor values = v_KTH.narrow(1, 0, slab.num_keys);
    at::Tensor p = masked_scores(q_KRH, keys, slab, scale);
    p.sub_(lse.narrow(2, slab.begin, rows).reshape({q.size(0), -1, 1})).exp_();
    dv.narrow(1, 0, slab.num_keys).baddbmm_(p.transpose(1, 2), d_o_KRH);
    const at::Tensor sums = at::mul(d_o_KRH, folded(o, slab, type)).sum(2, /*keepdim=*/true);
    at::Tensor ds = at::bmm(d_o_KRH, values.transpose(1, 2)).sub_(sums).mul_(p);
    const at::Tensor dq_KRH = at::bmm(ds, keys).mul_(scale);
    out.dq.narrow(2, slab.begin, rows).copy_(dq_KRH.view({q.size(0), q.size(1), rows, -1}));
    dk.narrow(1, 0, slab.num_keys).baddbmm_(ds.transpose(1, 2), q_KRH, 1, scale);
  }
  out.dk.copy_(dk.unsqueeze(1));
  out.dv.copy_(dv.unsqueeze(1));
}

// The CPU kernel wants as many KV heads as query heads: an expanded view costs no copy.
at::Tensor repeated(const at::Tensor& k, int64_t G) {
  return k.expand({k.size(0), G, k.size(2), k.size(3)});
}

void forward_cpu_flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                       at::Tensor o, at::Tensor lse) {
  const int64_t G = q.size(1);
  auto [o_d, lse_d] = at::_scaled_dot_product_flash_attention_for_cpu(
      q, repeated(k, G), repeated(v, G), 0.0, /*is_causal=*/true, {}, scale);
  o.copy_(o_d);
  lse.copy_(lse_d);
}

void backward_cpu_flash(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                        double scale, const Gradients& out) {
  const int64_t G = q.size(1);
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      d_o, q, repeated(k, G), repeated(v, G), o, lse.contiguous(), 0.0, /*is_causal=*/true, {},
      scale);
  out.dq.copy_(dq);
  out.dk.copy_(dk.sum(1, /*keepdim=*/true));
  out.dv.copy_(dv.sum(1, /*keepdim=*/true));
}

// LibTorch's flash backward reads the process-wide switch, on the host, when it is launched; it has no
// argument for it. The guard covers that one call. NOTE: the switch also makes every allocation fill
// itself with NaN, which is turned off alongside.
class DeterministicGuard {
 public:
  DeterministicGuard()
      : on_(at::globalContext().deterministicAlgorithms()),
        warn_only_(at::globalContext().deterministicAlgorithmsWarnOnly()),
        fill_(at::globalContext().deterministicFillUninitializedMemory()) {
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  }
  ~DeterministicGuard() {
    at::globalContext().setDeterministicAlgorithms(on_, warn_only_);
    at::globalContext().setDeterministicFillUninitializedMemory(fill_);
  }
  DeterministicGuard(const DeterministicGuard&) = delete;
  DeterministicGuard& operator=(const DeterministicGuard&) = delete;

 private:
  bool on_, warn_only_, fill_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> dense_attention_forward(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v,
                                                           const Documents& q_docs,
                                                           const Documents& k_docs, double scale) {
  const Heads heads = check_door(q, k, v, q_docs, k_docs);
  if (use_flash(q)) {
    auto result = at::_flash_attention_forward(q, k, v, q_docs.offsets_i32, k_docs.offsets_i32,
                                               q_docs.longest, k_docs.longest, 0.0,
                                               /*is_causal=*/true, /*return_debug_mask=*/false,
                                               scale);
    return {std::get<0>(result), std::get<1>(result)};
  }
  at::Tensor o = at::empty_like(q);
  at::Tensor lse = at::empty({heads.NH, q.size(0)}, q.options().dtype(accumulate_type(q)));
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    const auto forward = use_cpu_flash(q, q_docs.length(d), k_docs.length(d)) ? forward_cpu_flash
                                                                             : forward_slabs;
    forward(grouped(q, q_docs, d, heads.NKV), grouped(k, k_docs, d, heads.NKV),
            grouped(v, k_docs, d, heads.NKV), scale, grouped(o, q_docs, d, heads.NKV),
            grouped_rows(lse, q_docs, d, heads.NKV));
  }
  return {o, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> dense_attention_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const Documents& q_docs, const Documents& k_docs,
    double scale) {
  const Heads heads = check_door(q, k, v, q_docs, k_docs);
  check_same(d_o, q, "dense_attention backward", "d_o");
  check_same(o, q, "dense_attention backward", "o");
  check_statistic(lse, {heads.NH, q.size(0)}, q, "dense_attention backward", "lse");
  if (use_flash(q)) {
    const DeterministicGuard deterministic;
    const at::Tensor no_dropout = at::empty({2}, q.options().dtype(at::kUInt64));
    return at::_flash_attention_backward(d_o, q, k, v, o, lse, q_docs.offsets_i32,
                                         k_docs.offsets_i32, q_docs.longest, k_docs.longest, 0.0,
                                         /*is_causal=*/true, no_dropout, no_dropout, scale);
  }
  const Gradients out{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    const auto backward = use_cpu_flash(q, q_docs.length(d), k_docs.length(d)) ? backward_cpu_flash
                                                                              : backward_slabs;
    backward(grouped(d_o, q_docs, d, heads.NKV), grouped(q, q_docs, d, heads.NKV),
             grouped(k, k_docs, d, heads.NKV), grouped(v, k_docs, d, heads.NKV),
             grouped(o, q_docs, d, heads.NKV), grouped_rows(lse, q_docs, d, heads.NKV), scale,
             Gradients{grouped(out.dq, q_docs, d, heads.NKV),
                       grouped(out.dk, k_docs, d, heads.NKV),
                       grouped(out.dv, k_docs, d, heads.NKV)});
  }
  return {out.dq, out.dk, out.dv};
}

}  // namespace sala
