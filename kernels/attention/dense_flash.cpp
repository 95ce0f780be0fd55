// One call, or one for each piece of documents and heads.
#include "kernels/attention/dense_flash.h"

#include <ATen/Context.h>

#include <algorithm>
#include <vector>

namespace sala {
namespace {

// LibTorch's flash backward takes no argument for determinism: it reads the process-wide switch, on
// the host, when it is launched. The guard covers that one call. NOTE: the switch also makes every
// allocation fill itself with NaN, which is turned off alongside.
class DeterministicGuard {
 public:
  explicit DeterministicGuard(bool deterministic)
      : on_(at::globalContext().deterministicAlgorithms()),
        warn_only_(at::globalContext().deterministicAlgorithmsWarnOnly()),
        fill_(at::globalContext().deterministicFillUninitializedMemory()) {
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
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

Documents range_of(const Documents& docs, int64_t first, int64_t end, at::Device device) {
  std::vector<int64_t> starts;
  for (int64_t d = first; d < end; ++d) starts.push_back(docs.offsets[d] - docs.offsets[first]);
  return Documents::from_starts(starts, docs.offsets[end] - docs.offsets[first], device);
}

// A range of documents and of KV heads, with the query heads that share them.
struct Piece {
  int64_t q_begin, k_begin;  // tokens
  Documents q_docs, k_docs;
  int64_t head, num_heads;  // KV heads
  int64_t group;            // query heads of each

  at::Tensor queries(const at::Tensor& x) const {  // of (Tq, NH, HS)
    return x.narrow(0, q_begin, q_docs.num_tokens()).narrow(1, head * group, num_heads * group);
  }
  at::Tensor keys(const at::Tensor& x) const {  // of (Tk, NKV, HS)
    return x.narrow(0, k_begin, k_docs.num_tokens()).narrow(1, head, num_heads);
  }
  at::Tensor statistic(const at::Tensor& x) const {  // of (NH, Tq)
    return x.narrow(1, q_begin, q_docs.num_tokens()).narrow(0, head * group, num_heads * group);
  }
};

// As many documents as fit together, at least one; of one alone as many heads as fit.
std::vector<Piece> pieces_of(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, int64_t most) {
  const int64_t NH = q.size(1), NKV = k.size(1), HS = q.size(2);
  const auto elements = [&](int64_t first, int64_t end) {
    return HS * std::max(NH * (q_docs.offsets[end] - q_docs.offsets[first]),
                         NKV * (k_docs.offsets[end] - k_docs.offsets[first]));
  };
  std::vector<Piece> pieces;
  for (int64_t first = 0, end; first < q_docs.count(); first = end) {
    for (end = first + 1; end < q_docs.count() && elements(first, end + 1) <= most;) ++end;
    const int64_t of_head = elements(first, end) / NKV;
    TORCH_CHECK(of_head <= 2 * most, "dense attention: a document of ",
                q_docs.offsets[end] - q_docs.offsets[first], " tokens with ", NH / NKV,
                " query heads to a KV head is too long for the flash kernel: expected at most ",
                2 * most / (HS * (NH / NKV)), "; use sparse attention or a larger context");
    const int64_t heads = std::clamp<int64_t>(most / of_head, 1, NKV);
    for (int64_t head = 0; head < NKV; head += heads) {
      pieces.push_back(
          {q_docs.offsets[first], k_docs.offsets[first], range_of(q_docs, first, end, q.device()),
           range_of(k_docs, first, end, q.device()), head, std::min(heads, NKV - head), NH / NKV});
    }
  }
  return pieces;
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& v, const Documents& q_docs,
                                           const Documents& k_docs, double scale) {
  const auto result = at::_flash_attention_forward(
      q, k, v, q_docs.offsets_i32, k_docs.offsets_i32, q_docs.longest, k_docs.longest, 0.0,
      /*is_causal=*/true, /*return_debug_mask=*/false, scale);
  return {std::get<0>(result), std::get<1>(result)};
}

DenseGradients backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                        const Documents& q_docs, const Documents& k_docs, double scale) {
  const at::Tensor no_dropout = at::empty({2}, q.options().dtype(at::kUInt64));
  const auto [dq, dk, dv] = at::_flash_attention_backward(
      d_o, q, k, v, o, lse, q_docs.offsets_i32, k_docs.offsets_i32, q_docs.longest, k_docs.longest,
      0.0, /*is_causal=*/true, no_dropout, no_dropout, scale);
  return {dq, dk, dv};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> dense_flash_forward(const at::Tensor& q, const at::Tensor& k,
                                                       const at::Tensor& v, const Documents& q_docs,
                                                       const Documents& k_docs, double scale,
                                                       int64_t most_elements) {
  if (std::max(q.numel(), k.numel()) <= most_elements) {
    return forward(q, k, v, q_docs, k_docs, scale);
  }
  const at::Tensor o = at::empty_like(q);
  const at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  for (const Piece& piece : pieces_of(q, k, q_docs, k_docs, most_elements)) {
    const auto [o_piece, lse_piece] =
        forward(piece.queries(q).contiguous(), piece.keys(k).contiguous(),
                piece.keys(v).contiguous(), piece.q_docs, piece.k_docs, scale);
    piece.queries(o).copy_(o_piece);
    piece.statistic(lse).copy_(lse_piece);
  }
  return {o, lse};
}

DenseGradients dense_flash_backward(const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                                    const Documents& q_docs, const Documents& k_docs, double scale,
                                    bool deterministic, int64_t most_elements) {
  const DeterministicGuard guard(deterministic);
  if (std::max(q.numel(), k.numel()) <= most_elements) {
    return backward(d_o, q, k, v, o, lse, q_docs, k_docs, scale);
  }
  DenseGradients out{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  for (const Piece& piece : pieces_of(q, k, q_docs, k_docs, most_elements)) {
    const DenseGradients of_piece = backward(
        piece.queries(d_o).contiguous(), piece.queries(q).contiguous(), piece.keys(k).contiguous(),
        piece.keys(v).contiguous(), piece.queries(o).contiguous(),
        piece.statistic(lse).contiguous(), piece.q_docs, piece.k_docs, scale);
    piece.queries(out.dq).copy_(of_piece.dq);
    piece.keys(out.dk).copy_(of_piece.dk);
    piece.keys(out.dv).copy_(of_piece.dv);
  }
  return out;
}

}  // namespace sala
