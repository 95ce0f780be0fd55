// Attention of the decode step, one query head of one sequence at a time.
#include "kernels/twins/decode.h"

#include <algorithm>
#include <cmath>

namespace sala {

namespace {

// The tokens that a sequence looks at; `list` (K), null: all.
std::vector<int64_t> tokens_of(int64_t length, const int* list, int64_t K, const SparseConfig& c) {
  std::vector<int64_t> tokens;
  if (list == nullptr || length < c.dense_len) {
    for (int64_t t = 0; t < length; ++t) tokens.push_back(t);
    return tokens;
  }
  for (int64_t i = 0; i < K; ++i) {
    const int64_t first = list[i] * c.block_size;
    for (int64_t t = first; list[i] >= 0 && t < first + c.block_size && t < length; ++t) {
      tokens.push_back(t);
    }
  }
  return tokens;
}

// One head: q, o (HS); rows of k and v lie `step` apart.
void attend(const double* q, const double* k, const double* v, double* o, int64_t HS, int64_t step,
            const std::vector<int64_t>& tokens, double scale) {
  std::vector<double> scores;
  for (const int64_t t : tokens) {
    double product = 0;
    for (int64_t i = 0; i < HS; ++i) product += q[i] * k[t * step + i];
    scores.push_back(scale * product);
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  std::fill(o, o + HS, 0.0);
  for (size_t n = 0; n < tokens.size(); ++n) {
    const double weight = std::exp(scores[n] - top);
    sum += weight;
    for (int64_t i = 0; i < HS; ++i) o[i] += weight * v[tokens[n] * step + i];
  }
  for (int64_t i = 0; i < HS; ++i) o[i] /= sum;
}

}  // namespace

at::Tensor decode_attention_twin(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const std::vector<int64_t>& lengths, const at::Tensor& blocks,
                                 const SparseConfig& config, double scale) {
  const int64_t S = q.size(0), NH = q.size(1), HS = q.size(2);
  const int64_t capacity = k.size(1), NKV = k.size(2), K = blocks.defined() ? blocks.size(2) : 0;
  const at::Tensor q64 = q.to(at::kDouble).contiguous(), k64 = k.to(at::kDouble).contiguous(),
                   v64 = v.to(at::kDouble).contiguous();
  at::Tensor o = at::empty_like(q64);
  for (int64_t s = 0; s < S; ++s) {
    for (int64_t h = 0; h < NH; ++h) {
      const int64_t n = h / (NH / NKV), row = (s * NH + h) * HS;
      const int64_t cache = (s * capacity * NKV + n) * HS;
      const int* list = blocks.defined() ? blocks.const_data_ptr<int>() + (n * S + s) * K : nullptr;
      attend(q64.const_data_ptr<double>() + row, k64.const_data_ptr<double>() + cache,
             v64.const_data_ptr<double>() + cache, o.data_ptr<double>() + row, HS, NKV * HS,
             tokens_of(lengths[s], list, K, config), scale);
    }
  }
  return o.to(q.scalar_type());
}

}  // namespace sala
