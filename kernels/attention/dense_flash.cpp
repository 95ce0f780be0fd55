// One call, or one for each piece of documents and heads.
#include "kernels/attention/dense_flash.h"

#include <ATen/Context.h>

#include <algorithm>
#include <utility>
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

constexpr int64_t kMostDocuments = 65535;  // of a call: the kernel's grid counts them in y

Documents range_of(const Documents& docs, int64_t first, int64_t end, at::Device device) {
  std::vector<int64_t> starts;
  for (int64_t d = first; d < end; ++d) starts.push_back(docs.offsets[d] - docs.offsets[first]);
  return Documents::from_starts(starts, docs.offsets[end] - docs.offsets[first], device);
}

struct Heads {
  int64_t begin, count;
};

// A range of documents and of heads: KV heads with all their query heads, or one with some.
struct Piece {
  int64_t q_begin, k_begin;  // tokens
  Documents q_docs, k_docs;
  Heads q_heads, k_heads;
  bool adds_to_keys;  // others of its KV head's query heads came before

  at::Tensor queries(const at::Tensor& x) const {  // of (Tq, NH, HS)
    return x.narrow(0, q_begin, q_docs.num_tokens()).narrow(1, q_heads.begin, q_heads.count);
  }
  at::Tensor keys(const at::Tensor& x) const {  // of (Tk, NKV, HS)
    return x.narrow(0, k_begin, k_docs.num_tokens()).narrow(1, k_heads.begin, k_heads.count);
  }
  at::Tensor statistic(const at::Tensor& x) const {  // of (NH, Tq)
    return x.narrow(1, q_begin, q_docs.num_tokens()).narrow(0, q_heads.begin, q_heads.count);
  }
  void add_key_gradient(const at::Tensor& all, const at::Tensor& part) const {
    if (adds_to_keys) {
      keys(all).add_(part);
    } else {
      keys(all).copy_(part);
    }
  }
};

// What the kernel's offsets count for queries or keys of so many heads: head sizes are rounded, and
// sums of dq have 128 rows more for each document.
int64_t counted_elements(const Documents& docs, int64_t first, int64_t end, int64_t heads,
                         int64_t head_size) {
  const int64_t multiple = head_size <= 128 ? 32 : 64;
  const int64_t rounded = (head_size + multiple - 1) / multiple * multiple;
  const int64_t rows = docs.offsets[end] - docs.offsets[first] + 128 * (end - first);
  return rows * heads * rounded;
}

bool fits_one_call(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                   const Documents& k_docs, int64_t most) {
  const int64_t D = q_docs.count();
  return D <= kMostDocuments && counted_elements(q_docs, 0, D, q.size(1), q.size(2)) <= most &&
         counted_elements(k_docs, 0, D, k.size(1), k.size(2)) <= most;
}

// Query and KV heads that go together, where one query head counts for `of_query_head`.
std::vector<std::pair<Heads, Heads>> head_ranges(int64_t NH, int64_t NKV, int64_t of_query_head,
                                                 int64_t most) {
  const int64_t G = NH / NKV, together = std::max<int64_t>(most / of_query_head, 1);
  std::vector<std::pair<Heads, Heads>> ranges;
  if (together >= G) {
    const int64_t step = together / G;
    for (int64_t kv = 0; kv < NKV; kv += step) {
      const int64_t count = std::min(step, NKV - kv);
      ranges.push_back({{kv * G, count * G}, {kv, count}});
    }
    return ranges;
  }
  for (int64_t kv = 0; kv < NKV; ++kv) {
    for (int64_t g = 0; g < G; g += together) {
      ranges.push_back({{kv * G + g, std::min(together, G - g)}, {kv, 1}});
    }
  }
  return ranges;
}

// As many documents as fit together, at least one; of one alone as many heads as fit.
std::vector<Piece> pieces_of(const at::Tensor& q, const at::Tensor& k, const Documents& q_docs,
                             const Documents& k_docs, int64_t most) {
  const int64_t NH = q.size(1), NKV = k.size(1), HS = q.size(2);
  const auto counted = [&](int64_t first, int64_t end) {
    return std::max(counted_elements(q_docs, first, end, NH, HS),
                    counted_elements(k_docs, first, end, NKV, HS));
  };
  std::vector<Piece> pieces;
  for (int64_t first = 0, end; first < q_docs.count(); first = end) {
    for (end = first + 1;
         end < q_docs.count() && end - first < kMostDocuments && counted(first, end + 1) <= most;) {
      ++end;
    }
    const int64_t of_query_head = (counted(first, end) + NH - 1) / NH;
    for (const auto& [q_heads, k_heads] : head_ranges(NH, NKV, of_query_head, most)) {
      pieces.push_back({q_docs.offsets[first], k_docs.offsets[first],
                        range_of(q_docs, first, end, q.device()),
                        range_of(k_docs, first, end, q.device()), q_heads, k_heads,
                        q_heads.begin % (NH / NKV) != 0});
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
                        const Documents& q_docs, const Documents& k_docs, double scale,
                        bool deterministic) {
  const DeterministicGuard guard(deterministic);
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
  if (fits_one_call(q, k, q_docs, k_docs, most_elements)) {
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
  if (fits_one_call(q, k, q_docs, k_docs, most_elements)) {
    return backward(d_o, q, k, v, o, lse, q_docs, k_docs, scale, deterministic);
  }
  DenseGradients out{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  for (const Piece& piece : pieces_of(q, k, q_docs, k_docs, most_elements)) {
    const DenseGradients of_piece = backward(
        piece.queries(d_o).contiguous(), piece.queries(q).contiguous(), piece.keys(k).contiguous(),
        piece.keys(v).contiguous(), piece.queries(o).contiguous(),
        piece.statistic(lse).contiguous(), piece.q_docs, piece.k_docs, scale, deterministic);
    piece.queries(out.dq).copy_(of_piece.dq);
    piece.add_key_gradient(out.dk, of_piece.dk);
    piece.add_key_gradient(out.dv, of_piece.dv);
  }
  return out;
}

}  // namespace sala
