// Causal attention per document in plain loops, one query and one head at a time.

#include <cmath>
#include <functional>

#include "kernels/check.h"
#include "kernels/twins/twins.h"
#include "kernels/twins/values.h"

namespace sala {
namespace {

// One query row: its place in q and the keys [first, last] that it sees, all in packed positions.
struct Row {
  int64_t query, first, last;
};

void for_each_row(const Documents& q_docs, const Documents& k_docs,
                  const std::function<void(const Row&)>& visit) {
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    const int64_t behind = k_docs.length(d) - q_docs.length(d);
    for (int64_t i = 0; i < q_docs.length(d); ++i) {
      visit({q_docs.offsets[d] + i, k_docs.offsets[d], k_docs.offsets[d] + behind + i});
    }
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> dense_attention_forward_twin(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Documents& q_docs,
    const Documents& k_docs, double scale) {
  const int64_t T = q.size(0), NH = q.size(1), NKV = k.size(1), HS = q.size(2);
  const auto Q = values_of(q), K = values_of(k), V = values_of(v);
  std::vector<double> o(Q.size()), lse(NH * T);
  for_each_row(q_docs, k_docs, [&](const Row& row) {
    for (int64_t h = 0; h < NH; ++h) {
      const int64_t kv = h / (NH / NKV);
      const double* query = &Q[(row.query * NH + h) * HS];
      std::vector<double> scores;
      double largest = -INFINITY;
      for (int64_t j = row.first; j <= row.last; ++j) {
        scores.push_back(scale * dot(query, &K[(j * NKV + kv) * HS], HS));
        largest = std::max(largest, scores.back());
      }
      double sum = 0;
      for (double score : scores) sum += std::exp(score - largest);
      lse[h * T + row.query] = largest + std::log(sum);
      for (int64_t j = row.first; j <= row.last; ++j) {
        const double p = std::exp(scores[j - row.first] - lse[h * T + row.query]);
        for (int64_t c = 0; c < HS; ++c) {
          o[(row.query * NH + h) * HS + c] += p * V[(j * NKV + kv) * HS + c];
        }
      }
    }
  });
  return {tensor_of(o, q.sizes(), q.scalar_type()), tensor_of(lse, {NH, T}, accumulate_type(q))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> dense_attention_backward_twin(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const Documents& q_docs, const Documents& k_docs,
    double scale) {
  const int64_t T = q.size(0), NH = q.size(1), NKV = k.size(1), HS = q.size(2);
  const auto Q = values_of(q), K = values_of(k), V = values_of(v), O = values_of(o),
             dO = values_of(d_o), L = values_of(lse);
  std::vector<double> dq(Q.size()), dk(K.size()), dv(V.size());
  for_each_row(q_docs, k_docs, [&](const Row& row) {
    for (int64_t h = 0; h < NH; ++h) {
      const int64_t at = (row.query * NH + h) * HS;
      const double shared = dot(&dO[at], &O[at], HS);
      for (int64_t j = row.first; j <= row.last; ++j) {
        const int64_t key = (j * NKV + h / (NH / NKV)) * HS;
        const double p = std::exp(scale * dot(&Q[at], &K[key], HS) - L[h * T + row.query]);
        const double ds = p * (dot(&dO[at], &V[key], HS) - shared);
        for (int64_t c = 0; c < HS; ++c) {
          dv[key + c] += p * dO[at + c];
          dq[at + c] += scale * ds * K[key + c];
          dk[key + c] += scale * ds * Q[at + c];
        }
      }
    }
  });
  const auto dtype = q.scalar_type();
  return {tensor_of(dq, q.sizes(), dtype), tensor_of(dk, k.sizes(), dtype),
          tensor_of(dv, v.sizes(), dtype)};
}

}  // namespace sala
