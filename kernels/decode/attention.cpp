// Selection and attention of the decode step: the kernels of launch.h where they take the call,
// else a composition of LibTorch ops, one sequence after another.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <limits>

#include "kernels/batched_gemm.h"
#include "kernels/check.h"
#include "kernels/decode.h"
#include "kernels/decode/cuda.h"
#include "kernels/selection/composed.h"
#include "kernels/to_device.h"

namespace sala {

namespace {

void check_queries(const at::Tensor& q, const KeyCache& cache, const DecodeLengths& lengths,
                   const char* op) {
  check_input(q, 3, op, "q");
  check_like(q, cache.k, op, "q");
  TORCH_CHECK(q.size(0) == cache.k.size(0) && lengths.count() == q.size(0) &&
                  q.size(1) % cache.k.size(2) == 0 && q.size(2) == cache.k.size(3),
              op, ": expected a query of each sequence of the cache, ", cache.k.sizes(),
              ", in heads that its heads divide, got ", q.sizes(), " and ", lengths.count(),
              " lengths");
}

// One sequence's query (NH, HS) as (NKV, G, HS).
at::Tensor by_kv_head(const at::Tensor& q, int64_t NKV) { return q.view({NKV, -1, q.size(1)}); }

// softmax(scale q k^T) v: q (NKV, G, HS), k, v (NKV, n, HS); hidden (NKV, 1, n) or undefined.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& hidden, double scale) {
  at::Tensor p = bmm_wide(q, k.transpose(1, 2)).mul_(scale);
  if (hidden.defined()) p.masked_fill_(hidden, -std::numeric_limits<double>::infinity());
  return bmm_wide(at::softmax(p, 2).to(q.scalar_type()), v);
}

// The same over the blocks in list (NKV, K) of k, v (n, NKV, HS) alone.
at::Tensor attend_listed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& list, int64_t block_size, double scale) {
  const int64_t NKV = k.size(1), n = k.size(0), HS = k.size(2);
  const at::Tensor place = at::arange(block_size, list.options().dtype(at::kLong));
  const at::Tensor token =
      list.to(at::kLong).unsqueeze(2).mul(block_size).add(place).view({NKV, -1});
  const at::Tensor hidden = token.lt(0).logical_or_(token.ge(n)).unsqueeze(1);
  const at::Tensor at_token = token.clamp(0, n - 1).unsqueeze(2).expand({-1, -1, HS});
  const auto listed = [&](const at::Tensor& x) { return x.transpose(0, 1).gather(1, at_token); };
  return attend(q, listed(k), listed(v), hidden, scale);
}

// Blocks 0 .. own of every sequence: (NKV, S, K).
at::Tensor first_blocks(const DecodeLengths& lengths, int64_t NKV, const SparseConfig& c,
                        at::Device device) {
  std::vector<int> own;
  for (const int64_t length : lengths.host)
    own.push_back(static_cast<int>((length - 1) / c.block_size));
  const at::Tensor last = queue_to(at::tensor(own, at::kInt), device).unsqueeze(1);
  const at::Tensor block = at::arange(c.blocks_per_token(), last.options()).unsqueeze(0);
  return at::where(block <= last, block, -1).to(at::kInt).unsqueeze(0).repeat({NKV, 1, 1});
}

}  // namespace

at::Tensor decode_select(const at::Tensor& q, const KeyCache& cache, const DecodeLengths& lengths,
                         const SparseConfig& config, double scale) {
  const at::NoGradGuard no_grad;
  check_queries(q, cache, lengths, "decode_select");
  TORCH_CHECK(cache.compressed.defined(), "decode_select: expected a cache with compressed keys");
  // The cache was made for the one or the other.
  const bool takes = decode_select_kernels_run(q, cache, config);
  TORCH_CHECK(takes == cache.compressed.tiles.defined(), "decode_select: expected compressed keys ",
              takes ? "in tiles" : "by windows", ", as make_key_cache makes them for this call");
  if (takes) return decode_select_cuda(q, cache, lengths, config, scale);
  const int64_t NKV = cache.k.size(2);
  const at::ScalarType wide = accumulate_type(q);
  at::Tensor blocks = first_blocks(lengths, NKV, config, q.device());
  for (int64_t s = 0; s < lengths.count(); ++s) {
    const int64_t position = lengths.host[s] - 1;
    if (position < config.blocks_per_token() * config.block_size) continue;
    const WindowMeans means{cache.compressed.fine[s].to(wide), cache.compressed.coarse[s].to(wide)};
    const at::Tensor rows = by_kv_head(q[s], NKV).to(wide).mul(scale);
    const at::Tensor at_position = at::full({1}, position, q.options().dtype(at::kLong));
    blocks.narrow(1, s, 1).copy_(best_of_windows(rows, means, at_position, position, config));
  }
  return blocks;
}

at::Tensor decode_attention(const at::Tensor& q, const KeyCache& cache,
                            const DecodeLengths& lengths, const at::Tensor& blocks,
                            const SparseConfig& config, double scale) {
  const at::NoGradGuard no_grad;
  check_queries(q, cache, lengths, "decode_attention");
  const int64_t NKV = cache.k.size(2);
  TORCH_CHECK(!blocks.defined() ||
                  (blocks.scalar_type() == at::kInt && blocks.is_contiguous() &&
                   blocks.dim() == 3 && blocks.size(0) == NKV && blocks.size(1) == q.size(0)),
              "decode_attention: expected int32 blocks (", NKV, ", ", q.size(0), ", K)");
  if (decode_attention_kernels_run(q, cache, config, scale)) {
    return decode_attention_cuda(q, cache, lengths, blocks, config, scale);
  }
  at::Tensor o = at::empty_like(q);
  for (int64_t s = 0; s < lengths.count(); ++s) {
    const at::Tensor rows = by_kv_head(q[s], NKV);
    const at::Tensor k = cache.k[s].narrow(0, 0, lengths.host[s]);
    const at::Tensor v = cache.v[s].narrow(0, 0, lengths.host[s]);
    const bool listed = blocks.defined() && lengths.host[s] >= config.dense_len;
    const at::Tensor o_rows =
        listed ? attend_listed(rows, k, v, blocks.select(1, s), config.block_size, scale)
               : attend(rows, k.transpose(0, 1), v.transpose(0, 1), {}, scale);
    by_kv_head(o[s], NKV).copy_(o_rows);
  }
  return o;
}

}  // namespace sala
