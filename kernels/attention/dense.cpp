// Causal softmax attention within each document:
//   CUDA bf16        the variable-length flash kernel (dense_flash.h)
//   CPU, nq = nk     LibTorch's CPU flash kernel, one call per document
//   everything else  query slabs per document (dense_slabs.h), scores in fp32 or fp64
//
// Documents of one round length are cuDNN's (dense_cudnn.h) where no backward follows, or where
// results need not be the same bits at every call: its forward takes 1.0 ms instead of 1.8 at 8K on
// an H100, 247 instead of 422 at 128K (32/2 heads of 128). The flash backward adds parts of dq in a
// fixed order unless nobody asks for that.
//
// With P = exp(scale q k^T - lse) and D = rowsum(dO * O): dV = P^T dO, dS = P * (dO V^T - D),
// dQ = scale dS K, dK = scale dS^T Q.

#include <ATen/ATen.h>

#include <string>

#include "kernels/attention/dense_cudnn.h"
#include "kernels/attention/dense_flash.h"
#include "kernels/attention/dense_slabs.h"
#include "kernels/attention/query_slabs.h"
#include "kernels/check.h"
#include "kernels/ops.h"
#include "kernels/paths.h"

namespace sala {
namespace {

constexpr const char* kOp = "dense_attention";

bool use_flash(const at::Tensor& q) {
  if (!q.is_cuda()) return false;
  const bool bf16 = q.scalar_type() == at::kBFloat16;
  if (!kernels_run(kOp, bf16 ? std::string() : c10::str("bf16, got ", q.scalar_type()))) {
    return false;
  }
  TORCH_CHECK(q.size(2) % 8 == 0 && q.size(2) <= 256,
              "dense_attention: the flash kernel takes head sizes that are multiples of 8 up to ",
              "256, got ", q.size(2));
  return true;
}

// Of a pass that is trained.
bool trains_with_cudnn(const at::Tensor& q, const Documents& q_docs, const Documents& k_docs) {
  return !deterministic_paths() && dense_cudnn_gains(q, q_docs, k_docs);
}

bool use_cpu_flash(const at::Tensor& q, const Documents& q_docs, const Documents& k_docs) {
  return q.is_cpu() && q_docs.offsets == k_docs.offsets && accumulate_type(q) == q.scalar_type();
}

// One document of (T, N, HS) as (NKV, N / NKV, n, HS): KV heads play the batch.
at::Tensor grouped(const at::Tensor& x, const Documents& docs, int64_t d, int64_t NKV) {
  const int64_t n = docs.length(d);
  return x.narrow(0, docs.offsets[d], n)
      .view({n, NKV, x.size(1) / NKV, x.size(2)})
      .permute({1, 2, 0, 3});
}

// Likewise, with its one head repeated G times: the CPU kernel wants as many KV heads as query
// heads, and an expanded view costs no copy.
at::Tensor repeated(const at::Tensor& x, const Documents& docs, int64_t d, int64_t G) {
  const at::Tensor one = grouped(x, docs, d, x.size(1));
  return one.expand({one.size(0), G, one.size(2), one.size(3)});
}

// One document of (NH, T) as (NKV, G, n).
at::Tensor grouped_lse(const at::Tensor& lse, const Documents& docs, int64_t d, int64_t NKV) {
  return lse.view({NKV, lse.size(0) / NKV, lse.size(1)}).narrow(2, docs.offsets[d], docs.length(d));
}

void cpu_flash_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const Documents& docs, int64_t d, double scale, at::Tensor& o,
                       at::Tensor& lse) {
  const int64_t NKV = k.size(1), G = q.size(1) / NKV;
  const auto [o_d, lse_d] = at::_scaled_dot_product_flash_attention_for_cpu(
      grouped(q, docs, d, NKV), repeated(k, docs, d, G), repeated(v, docs, d, G), 0.0,
      /*is_causal=*/true, {}, scale);
  grouped(o, docs, d, NKV).copy_(o_d);
  grouped_lse(lse, docs, d, NKV).copy_(lse_d);
}

void cpu_flash_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                        const Documents& docs, int64_t d, double scale, DenseGradients& out) {
  const int64_t NKV = k.size(1), G = q.size(1) / NKV;
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      grouped(d_o, docs, d, NKV), grouped(q, docs, d, NKV), repeated(k, docs, d, G),
      repeated(v, docs, d, G), grouped(o, docs, d, NKV),
      grouped_lse(lse, docs, d, NKV).contiguous(), 0.0, /*is_causal=*/true, {}, scale);
  grouped(out.dq, docs, d, NKV).copy_(dq);
  grouped(out.dk, docs, d, NKV).copy_(dk.sum(1, /*keepdim=*/true));
  grouped(out.dv, docs, d, NKV).copy_(dv.sum(1, /*keepdim=*/true));
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> dense_attention_forward(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v,
                                                           const Documents& q_docs,
                                                           const Documents& k_docs, double scale) {
  check_queries_and_keys(q, k, q_docs, k_docs, "dense_attention");
  check_same(v, k, "dense_attention", "v");
  const at::NoGradGuard no_grad;
  if (use_flash(q)) {
    if (trains_with_cudnn(q, q_docs, k_docs)) {
      tell_way(kOp, "cuDNN where it is trained, for documents of one round length");
      return dense_cudnn_forward(q, k, v, q_docs.longest, scale, /*want_lse=*/true);
    }
    return dense_flash_forward(q, k, v, q_docs, k_docs, scale);
  }
  at::Tensor o = at::empty_like(q);
  at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(accumulate_type(q)));
  const bool cpu_flash = use_cpu_flash(q, q_docs, k_docs);
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    if (cpu_flash) {
      cpu_flash_forward(q, k, v, q_docs, d, scale, o, lse);
    } else {
      dense_slabs_forward(q, k, v, q_docs, k_docs, d, scale, o, lse);
    }
  }
  return {o, lse};
}

at::Tensor dense_attention_output(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const Documents& q_docs, const Documents& k_docs, double scale) {
  check_queries_and_keys(q, k, q_docs, k_docs, "dense_attention");
  check_same(v, k, "dense_attention", "v");
  const at::NoGradGuard no_grad;
  if (use_flash(q)) {
    if (dense_cudnn_gains(q, q_docs, k_docs)) {
      tell_way(kOp, "cuDNN where no backward follows, for documents of one round length");
      return std::get<0>(dense_cudnn_forward(q, k, v, q_docs.longest, scale, /*want_lse=*/false));
    }
    tell_way(kOp, "the variable-length flash kernel where no backward follows, for others");
  }
  return std::get<0>(dense_attention_forward(q, k, v, q_docs, k_docs, scale));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> dense_attention_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const Documents& q_docs, const Documents& k_docs,
    double scale) {
  const char* op = "dense_attention backward";
  check_queries_and_keys(q, k, q_docs, k_docs, op);
  check_same(v, k, op, "v");
  check_same(d_o, q, op, "d_o");
  check_same(o, q, op, "o");
  check_statistic(lse, {q.size(1), q.size(0)}, q, op, "lse");
  const at::NoGradGuard no_grad;
  if (use_flash(q)) {
    if (trains_with_cudnn(q, q_docs, k_docs)) {
      return dense_cudnn_backward(d_o, q, k, v, o, lse, q_docs.longest, scale);
    }
    const bool deterministic = deterministic_paths();
    tell_way(kOp, deterministic ? "the flash kernel where it is trained, with a fixed order of sums"
                                : "the flash kernel where it is trained, with any order of sums");
    auto [dq, dk, dv] =
        dense_flash_backward(d_o, q, k, v, o, lse, q_docs, k_docs, scale, deterministic);
    return {dq, dk, dv};
  }
  DenseGradients out{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  const bool cpu_flash = use_cpu_flash(q, q_docs, k_docs);
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    if (cpu_flash) {
      cpu_flash_backward(d_o, q, k, v, o, lse, q_docs, d, scale, out);
    } else {
      dense_slabs_backward(d_o, q, k, v, o, lse, q_docs, k_docs, d, scale, out);
    }
  }
  return {out.dq, out.dk, out.dv};
}

}  // namespace sala
