// Block-sparse attention, one query and one head at a time over the keys of its listed blocks.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/twins/attention.h"
#include "kernels/twins/values.h"

namespace sala {

namespace {

// Calls visit(row of q and o, query head, KV head, rows of k and v that the query sees).
template <class Visit>
void for_each_query(const at::Tensor& q, const at::Tensor& k, const at::Tensor& blocks,
                    const Documents& q_docs, const Documents& k_docs, int64_t block_size,
                    const Visit& visit) {
  const int64_t NH = q.size(1), G = NH / k.size(1), K = blocks.size(2);
  for (int64_t d = 0; d < q_docs.count(); ++d) {
    for (int64_t i = 0; i < q_docs.length(d); ++i) {
      const int64_t t = k_docs.length(d) - q_docs.length(d) + i, row = q_docs.offsets[d] + i;
      for (int64_t h = 0; h < NH; ++h) {
        const int* list = blocks.data_ptr<int>() + (h / G * q.size(0) + row) * K;
        std::vector<int64_t> keys;
        for (int64_t c = 0; c < K && list[c] >= 0; ++c) {
          const int64_t end = std::min((list[c] + 1) * block_size, t + 1);
          for (int64_t j = list[c] * block_size; j < end; ++j) {
            keys.push_back(k_docs.offsets[d] + j);
          }
        }
        visit(row, h, h / G, keys);
      }
    }
  }
}

void add_scaled(double* to, double weight, const double* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += weight * from[i];
}

struct Rows {
  at::Tensor x;  // (T, N, HS) fp64
  explicit Rows(const at::Tensor& from) : x(from.detach().to(at::kDouble).contiguous()) {}
  double* at(int64_t t, int64_t n) const {
    return x.data_ptr<double>() + (t * x.size(1) + n) * x.size(2);
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> block_sparse_attention_forward_twin(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& blocks,
    const Documents& q_docs, const Documents& k_docs, int64_t block_size, double scale) {
  const int64_t HS = q.size(2);
  const Rows q64(q), k64(k), v64(v), o(at::zeros_like(q));
  at::Tensor lse = at::zeros({q.size(1), q.size(0)}, at::kDouble);
  for_each_query(q, k, blocks, q_docs, k_docs, block_size,
                 [&](int64_t t, int64_t h, int64_t n, const std::vector<int64_t>& keys) {
                   std::vector<double> score;
                   for (const int64_t j : keys) {
                     score.push_back(scale * dot(q64.at(t, h), k64.at(j, n), HS));
                   }
                   const double top = *std::max_element(score.begin(), score.end());
                   double sum = 0;
                   for (const double s : score) sum += std::exp(s - top);
                   for (size_t c = 0; c < keys.size(); ++c) {
                     add_scaled(o.at(t, h), std::exp(score[c] - top) / sum, v64.at(keys[c], n), HS);
                   }
                   lse.data_ptr<double>()[h * q.size(0) + t] = top + std::log(sum);
                 });
  return {o.x.to(q.scalar_type()), lse.to(accumulate_type(q))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_attention_backward_twin(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& o, const at::Tensor& lse, const at::Tensor& blocks, const Documents& q_docs,
    const Documents& k_docs, int64_t block_size, double scale) {
  const int64_t HS = q.size(2);
  const Rows q64(q), k64(k), v64(v), o64(o), g64(d_o);
  const Rows dq(at::zeros_like(q)), dk(at::zeros_like(k)), dv(at::zeros_like(v));
  const at::Tensor lse64 = lse.to(at::kDouble);
  for_each_query(q, k, blocks, q_docs, k_docs, block_size,
                 [&](int64_t t, int64_t h, int64_t n, const std::vector<int64_t>& keys) {
                   const double* g = g64.at(t, h);
                   const double delta = dot(o64.at(t, h), g, HS);
                   for (const int64_t j : keys) {
                     const double s = scale * dot(q64.at(t, h), k64.at(j, n), HS);
                     const double p = std::exp(s - lse64.data_ptr<double>()[h * q.size(0) + t]);
                     const double ds = p * (dot(g, v64.at(j, n), HS) - delta) * scale;
                     add_scaled(dv.at(j, n), p, g, HS);
                     add_scaled(dq.at(t, h), ds, k64.at(j, n), HS);
                     add_scaled(dk.at(j, n), ds, q64.at(t, h), HS);
                   }
                 });
  const at::ScalarType dtype = q.scalar_type();
  return {dq.x.to(dtype), dk.x.to(dtype), dv.x.to(dtype)};
}

}  // namespace sala
