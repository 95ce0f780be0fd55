// Documents of one length as a batch, in cuDNN's layout (B, heads, n, HS): views of ours.

#include "kernels/attention/dense_cudnn.h"

#include <ATen/Context.h>

#include <string>

#include "kernels/paths.h"

namespace sala {
namespace {

constexpr int64_t kFewestTokens = 2048;  // of a document: the shortest that gains
constexpr int64_t kRound = 1024;         // few lengths are multiples, so few plans are made
constexpr int64_t kMostElements = int64_t{1} << 31;  // of q; not tried beyond

bool of_one_length(const Documents& docs) {
  return docs.longest * docs.count() == docs.num_tokens();
}

// What cuDNN lacks for documents that would gain from it; empty: nothing.
std::string lacking(const at::Tensor& q) {
  if (!at::globalContext().userEnabledCuDNNSDP()) return "LibTorch's switch for it is off";
  if (!at::globalContext().hasCuDNN()) return "this LibTorch has no cuDNN";
  if (q.size(2) > 128) return "it takes head sizes up to 128";
  return {};
}

// (T, N, HS) <-> (B, N, n, HS).
at::Tensor batched(const at::Tensor& x, const Documents& docs) {
  return x.view({docs.count(), docs.longest, x.size(1), x.size(2)}).transpose(1, 2);
}
at::Tensor packed(const at::Tensor& x) {
  return x.transpose(1, 2).contiguous().view({-1, x.size(1), x.size(3)});
}

}  // namespace

bool dense_cudnn_gains(const at::Tensor& q, const Documents& q_docs, const Documents& k_docs) {
  const int64_t n = q_docs.longest;
  if (n < kFewestTokens || n % kRound != 0 || !of_one_length(q_docs) ||
      q_docs.offsets != k_docs.offsets || q.numel() >= kMostElements) {
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
                                                       const at::Tensor& v, const Documents& docs,
                                                       double scale, bool want_lse) {
  const auto result = at::_cudnn_attention_forward(
      batched(q, docs), batched(k, docs), batched(v, docs), {}, {}, {}, docs.longest, docs.longest,
      want_lse, 0.0, /*is_causal=*/true, /*return_debug_mask=*/false, scale);
  at::Tensor lse;
  if (want_lse) {  // (B, NH, n, 1) -> (NH, T)
    lse = std::get<1>(result).squeeze(-1).transpose(0, 1).reshape({q.size(1), q.size(0)});
  }
  return {packed(std::get<0>(result)), lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> dense_cudnn_backward(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const Documents& docs, double scale) {
  const at::Tensor lse_BHn1 =
      lse.view({q.size(1), docs.count(), docs.longest}).transpose(0, 1).contiguous().unsqueeze(-1);
  const at::Tensor no_dropout = at::empty({}, q.options().dtype(at::kLong));
  const auto [dq, dk, dv] = at::_cudnn_attention_backward(
      batched(d_o, docs), batched(q, docs), batched(k, docs), batched(v, docs), batched(o, docs),
      lse_BHn1, no_dropout, no_dropout, /*attn_bias=*/{}, /*cum_seq_q=*/{}, /*cum_seq_k=*/{},
      docs.longest, docs.longest, 0.0, /*is_causal=*/true, scale);
  return {packed(dq), packed(dk), packed(dv)};
}

}  // namespace sala
