// Documents in cuDNN's layout (D, heads, n, HS): views of ours.

#include "kernels/attention/dense_cudnn.h"

#include <ATen/Context.h>
#include <c10/util/env.h>

#include <string>

#include "kernels/paths.h"

namespace sala {
namespace {

constexpr int64_t kFewestTokens = 2048;  // of a document: the shortest that gains
constexpr int64_t kRound = 1024;         // few lengths are multiples, so few plans are made
constexpr int64_t kMostElements = int64_t{1} << 31;  // of q; not tried beyond

// What cuDNN lacks for a document that would gain from it; empty: nothing.
std::string lacking(const at::Tensor& q) {
  if (!at::globalContext().userEnabledCuDNNSDP()) return "LibTorch's switch for it is off";
  if (!at::globalContext().hasCuDNN()) return "this LibTorch has no cuDNN";
  // LibTorch then gives all documents as a ragged batch, with offsets of lse that ours lacks.
  static const bool ragged = c10::utils::check_env("TORCH_CUDNN_SDPA_AVOID_RECOMPILE") == true;
  if (ragged) return "TORCH_CUDNN_SDPA_AVOID_RECOMPILE is set";
  if (q.size(2) > 128) return "it takes head sizes up to 128";
  return {};
}

// (T, N, HS) <-> (D, N, n, HS).
at::Tensor batched(const at::Tensor& x, int64_t n) {
  return x.unflatten(0, {x.size(0) / n, n}).transpose(1, 2);
}
at::Tensor packed(const at::Tensor& x) { return x.transpose(1, 2).flatten(0, 1).contiguous(); }

}  // namespace

bool dense_cudnn_gains(const at::Tensor& q, const Documents& q_docs, const Documents& k_docs) {
  const int64_t n = q_docs.longest;
  const bool equal = n * q_docs.count() == q_docs.num_tokens();  // all are the longest
  if (n < kFewestTokens || n % kRound != 0 || !equal || q_docs.offsets != k_docs.offsets ||
      q.numel() >= kMostElements) {
    return false;
  }
  const std::string missing = lacking(q);
  if (!missing.empty()) {
    tell_way("dense_attention",
             "the variable-length flash kernel where cuDNN would be faster: " + missing);
  }
  return missing.empty();
}

std::tuple<at::Tensor, at::Tensor> dense_cudnn_forward(const at::Tensor& q, const at::Tensor& k,
                                                       const at::Tensor& v, int64_t n, double scale,
                                                       bool want_lse) {
  const auto result = at::_cudnn_attention_forward(
      batched(q, n), batched(k, n), batched(v, n), {}, {}, {}, n, n, want_lse, 0.0,
      /*is_causal=*/true, /*return_debug_mask=*/false, scale);
  at::Tensor lse;  // of (D, NH, n, 1)
  if (want_lse) lse = std::get<1>(result).squeeze(3).transpose(0, 1).flatten(1).contiguous();
  return {packed(std::get<0>(result)), lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> dense_cudnn_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, int64_t n, double scale) {
  const at::Tensor no_dropout = at::empty({}, q.options().dtype(at::kLong));
  const at::Tensor lse_dn =
      lse.unflatten(1, {q.size(0) / n, n}).transpose(0, 1).unsqueeze(3).contiguous();
  const auto [dq, dk, dv] = at::_cudnn_attention_backward(
      batched(d_o, n), batched(q, n), batched(k, n), batched(v, n), batched(o, n), lse_dn,
      no_dropout, no_dropout, /*attn_bias=*/{}, /*cum_seq_q=*/{}, /*cum_seq_k=*/{}, n, n, 0.0,
      /*is_causal=*/true, scale);
  return {packed(dq), packed(dk), packed(dv)};
}

}  // namespace sala
