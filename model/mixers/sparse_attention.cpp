// Softmax attention of the kept layers: no positions, output gate, block-sparse for long documents.
#include <algorithm>
#include <cmath>

#include "kernels/to_device.h"
#include "model/autograd.h"
#include "model/mixers/mixers.h"

namespace sala {

namespace {

struct Heads {
  at::Tensor q, k, v;  // (Tq, NH, HS), (Tk, NKV, HS)
  double scale;
};

// A micro-batch can hold short documents (dense) beside long ones (sparse): the rows of either
// kind, gathered into a run of their own.
struct Subset {
  Documents q_docs, k_docs;
  at::Tensor q_rows, k_rows;  // int64 row numbers on the device
};

Subset take_documents(const Documents& q_docs, const Documents& k_docs,
                      const std::vector<int64_t>& which, at::Device device) {
  std::vector<int64_t> q_starts, k_starts, q_rows, k_rows;
  for (int64_t d : which) {
    q_starts.push_back(static_cast<int64_t>(q_rows.size()));
    k_starts.push_back(static_cast<int64_t>(k_rows.size()));
    for (int64_t t = q_docs.offsets[d]; t < q_docs.offsets[d + 1]; ++t) q_rows.push_back(t);
    for (int64_t t = k_docs.offsets[d]; t < k_docs.offsets[d + 1]; ++t) k_rows.push_back(t);
  }
  const int64_t num_q = static_cast<int64_t>(q_rows.size());
  const int64_t num_k = static_cast<int64_t>(k_rows.size());
  return {Documents::from_starts(q_starts, num_q, device),
          Documents::from_starts(k_starts, num_k, device), queue_to(at::tensor(q_rows), device),
          queue_to(at::tensor(k_rows), device)};
}

// Selects once per micro-batch: a recomputed forward finds the lists in saved->keep.
at::Tensor blocks_for(const MixerCall& call, const Heads& h, const Documents& q_docs,
                      const Documents& k_docs) {
  if (call.saved && !call.saved->keep.empty()) return call.saved->keep.front();
  at::Tensor blocks =
      block_select(h.q.detach(), h.k.detach(), q_docs, k_docs, call.config.sparse, h.scale);
  if (call.saved) call.saved->keep.push_back(blocks);
  return blocks;
}

at::Tensor attend_sparse(const MixerCall& call, const Heads& h, const Documents& q_docs,
                         const Documents& k_docs) {
  at::Tensor blocks = blocks_for(call, h, q_docs, k_docs);
  return block_sparse_attention(h.q, h.k, h.v, blocks, q_docs, k_docs,
                                call.config.sparse.block_size, h.scale);
}

at::Tensor attend(const MixerCall& call, const Heads& h) {
  const Documents& q_docs = call.env.batch->docs;
  const Documents& k_docs = call.env.key_docs;
  std::vector<int64_t> short_docs, long_docs;
  for (int64_t d = 0; d < k_docs.count(); ++d) {
    const int64_t length = std::max(k_docs.length(d), call.env.planned_tokens);
    const bool is_long = call.env.sparse && length >= call.config.sparse.dense_len;
    (is_long ? long_docs : short_docs).push_back(d);
  }
  if (long_docs.empty()) return attend_dense(call, h.q, h.k, h.v, q_docs, k_docs, h.scale);
  if (short_docs.empty()) return attend_sparse(call, h, q_docs, k_docs);

  Subset dense = take_documents(q_docs, k_docs, short_docs, h.q.device());
  Subset sparse = take_documents(q_docs, k_docs, long_docs, h.q.device());
  auto pick = [&](const Subset& s) {
    return Heads{h.q.index_select(0, s.q_rows), h.k.index_select(0, s.k_rows),
                 h.v.index_select(0, s.k_rows), h.scale};
  };
  Heads dense_heads = pick(dense);
  at::Tensor o_dense = attend_dense(call, dense_heads.q, dense_heads.k, dense_heads.v, dense.q_docs,
                                    dense.k_docs, h.scale);
  at::Tensor o_sparse = attend_sparse(call, pick(sparse), sparse.q_docs, sparse.k_docs);
  at::Tensor order = at::argsort(at::cat({dense.q_rows, sparse.q_rows}));
  return at::cat({o_dense, o_sparse}).index_select(0, order);
}

}  // namespace

at::Tensor sparse_attention(const MixerCall& call, const at::Tensor& x) {
  const ModelConfig& c = call.config;
  const Weights& w = call.weights;
  const int64_t T = x.size(0);
  auto heads = [&](const char* weight, const char* bias, int64_t n) {
    return at::linear(x, w[weight], w.find(bias)).view({T, n, c.head_size});
  };
  Heads h{heads("q_proj.weight", "q_proj.bias", c.num_heads),
          heads("k_proj.weight", "k_proj.bias", c.num_kv_heads),
          heads("v_proj.weight", "v_proj.bias", c.num_kv_heads),
          1.0 / std::sqrt(static_cast<double>(c.head_size))};
  const RopeTable none, &rope = c.sparse_rope ? call.env.full_rope : none;
  h.q = qk_norm_rope(h.q, w.find("q_norm.weight"), rope.cos, rope.sin, c.rms_eps);
  h.k = qk_norm_rope(h.k, w.find("k_norm.weight"), rope.cos, rope.sin, c.rms_eps);
  if (DecodeState* decode = call.env.decode) {
    LayerState& kept = decode->layers[call.layer];
    h.k = append_to_cache(kept.k, h.k, decode->num_tokens);
    h.v = append_to_cache(kept.v, h.v, decode->num_tokens);
  }
  at::Tensor o_TC = attend(call, h).reshape({T, c.q_size()});
  at::Tensor gated = o_TC;
  if (c.sparse_output_gate) {
    at::Tensor z_TC = at::linear(x, w["o_gate.weight"], w.find("o_gate.bias"));
    gated = gated_norm(o_TC, z_TC, {}, c.rms_eps);
  }
  at::Tensor y_TC = at::linear(gated, w["o_proj.weight"], w.find("o_proj.bias"));
  if (call.env.tap) (*call.env.tap)(call.layer, x, o_TC, y_TC);
  return y_TC;
}

}  // namespace sala
