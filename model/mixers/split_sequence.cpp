// Exchanges between the ranks that share a line of tokens.
#include "model/mixers/split_sequence.h"

#include <cmath>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "kernels/to_device.h"

namespace sala {

namespace {

// exp(-s n) per head as (NH, 1, 1); what no precision sees any more is 0, as in the ops.
at::Tensor decay_over(const at::Tensor& slopes, int64_t num_tokens, const at::Tensor& like) {
  at::Tensor decay = at::empty_like(slopes);
  const double* s = slopes.const_data_ptr<double>();
  for (int64_t h = 0; h < slopes.size(0); ++h) {
    const double exponent = s[h] * static_cast<double>(num_tokens);
    decay.data_ptr<double>()[h] = exponent > 60 ? 0 : std::exp(-exponent);
  }
  return queue_to(decay.to(like.scalar_type()), like.device()).view({-1, 1, 1});
}

// Every rank's state, (R, NH, HS, HS).
at::Tensor gather_states(const SequenceShard& shard, const at::Tensor& state) {
  std::vector<int64_t> sizes = state.sizes().vec();
  sizes.insert(sizes.begin(), shard.comm->size());
  at::Tensor all = at::empty(sizes, state.options());
  shard.comm->all_gather(all, state);
  return all;
}

at::Tensor no_state(const at::Tensor& rows) {
  return at::zeros({rows.size(1), rows.size(2), rows.size(2)},
                   rows.options().dtype(accumulate_type(rows)));
}

// Shards padded to the longest, one after another: rows of shard r begin at r * longest.
bool is_padded(const SequenceShard& shard) {
  return shard.longest() * shard.comm->size() != shard.borders.back();
}

// The ranks whose rows this one's queries look at are [first, rank].
int first_key_rank(const SequenceShard& shard) {
  int r = shard.comm->rank();
  while (shard.borders[r] > shard.first_key()) --r;
  return r;
}

}  // namespace

at::Tensor entering_state(const SequenceShard& shard, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& slopes) {
  if (!shard.any_crossed()) return {};
  const int rank = shard.comm->rank();
  at::Tensor own = no_state(k);
  if (shard.is_crossed(rank + 1)) {
    const int64_t last_start = shard.whole.offsets[shard.document_at(shard.end() - 1)];
    own = lightning_end_state(k, v, slopes, std::max<int64_t>(last_start - shard.begin(), 0));
  }
  const at::Tensor all = gather_states(shard, own);
  if (!shard.is_crossed(rank)) return {};
  const int first = first_key_rank(shard);  // where the document begins
  at::Tensor state = all[first].clone();
  for (int r = first + 1; r < rank; ++r) {
    state = all[r].addcmul(state, decay_over(slopes, shard.num_tokens(r), state));
  }
  return state;
}

at::Tensor leaving_gradient(const SequenceShard& shard, const at::Tensor& q, const at::Tensor& d_o,
                            const at::Tensor& slopes, double scale) {
  if (!shard.any_crossed()) return {};
  const int rank = shard.comm->rank();
  at::Tensor own = no_state(q);
  if (shard.is_crossed(rank)) {
    const int64_t first_end = shard.whole.offsets[shard.first_document() + 1];
    own = lightning_start_gradient(q, d_o, slopes, std::min(first_end, shard.end()) - shard.begin(),
                                   scale);
  }
  const at::Tensor all = gather_states(shard, own);
  if (!shard.is_crossed(rank + 1)) return {};
  int last = rank + 1;  // where the document ends
  while (shard.is_crossed(last + 1) &&
         shard.document_at(shard.borders[last + 1]) == shard.document_at(shard.end())) {
    ++last;
  }
  at::Tensor gradient = all[last].clone();
  for (int r = last - 1; r > rank; --r) {
    gradient = all[r].addcmul(gradient, decay_over(slopes, shard.num_tokens(r), gradient));
  }
  return gradient;
}

at::Tensor gather_keys(const SequenceShard& shard, const at::Tensor& x) {
  if (!shard.any_crossed()) return x;
  const int rank = shard.comm->rank();
  const int64_t longest = shard.longest(), N = x.size(1), HS = x.size(2);
  at::Tensor own = x.contiguous();
  if (own.size(0) < longest) {
    own = at::cat({own, at::zeros({longest - own.size(0), N, HS}, x.options())});
  }
  at::Tensor all = at::empty({longest * shard.comm->size(), N, HS}, x.options());
  shard.comm->all_gather(all, own);
  const int64_t begin = shard.first_key();
  if (!is_padded(shard)) return all.slice(0, begin, shard.end());
  std::vector<at::Tensor> pieces;
  for (int r = first_key_rank(shard); r <= rank; ++r) {
    const int64_t skip = std::max<int64_t>(begin - shard.borders[r], 0);
    pieces.push_back(all.narrow(0, r * longest + skip, shard.num_tokens(r) - skip));
  }
  return at::cat(pieces);
}

at::Tensor scatter_key_gradient(const SequenceShard& shard, const at::Tensor& d_keys) {
  if (!shard.any_crossed()) return d_keys;
  const int rank = shard.comm->rank();
  const int64_t longest = shard.longest(), N = d_keys.size(1), HS = d_keys.size(2);
  const at::TensorOptions wide = d_keys.options().dtype(accumulate_type(d_keys));
  at::Tensor all = at::zeros({longest * shard.comm->size(), N, HS}, wide);
  const int64_t begin = shard.first_key();
  for (int r = first_key_rank(shard); r <= rank; ++r) {
    const int64_t from = std::max(begin, shard.borders[r]);
    const int64_t count = shard.borders[r + 1] - from;
    all.narrow(0, r * longest + from - shard.borders[r], count)
        .copy_(d_keys.narrow(0, from - begin, count));
  }
  at::Tensor own = at::empty({longest, N, HS}, wide);
  shard.comm->reduce_scatter_sum(own, all);
  return own.narrow(0, 0, shard.num_tokens(rank)).to(d_keys.scalar_type());
}

}  // namespace sala
