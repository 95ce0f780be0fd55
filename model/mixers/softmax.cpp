// Causal softmax attention: dense, or over selected blocks for the long documents of sparse layers.
//
// A micro-batch can hold short documents (dense) beside long ones (sparse): then the rows of either
// kind are gathered into a run of their own. Kept, and never made again: o as "attention", and per
// run its LSE and its lists of blocks.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/decode.h"
#include "kernels/ops.h"
#include "kernels/to_device.h"
#include "model/generation/cache.h"
#include "model/mixers/attention.h"
#include "model/mixers/split_sequence.h"
#include "model/mixers/step.h"

namespace sala {

namespace {

double scale_of(const ModelConfig& c) { return 1.0 / std::sqrt(static_cast<double>(c.head_size)); }

// Keys and values of all tokens that this rank's queries may look at, and the documents they form.
struct Keys {
  at::Tensor k, v;  // (Tk, NKV, HS)
  const Documents& docs;
};

// Keeps the keys and values of the batch's documents; returns what they may look at: themselves, or
// of a document that was begun before, all of it so far.
Keys kept_keys(const MixerCall& call, const Heads& heads) {
  const CachePass& pass = *call.env.cached;
  KeyCache& cache = pass.cache.layers[call.layer].keys;
  const Documents& docs = call.env.batch->docs;
  for (int64_t d = 0; d < docs.count(); ++d) {
    auto rows = [&](const at::Tensor& x) { return x.narrow(0, docs.offsets[d], docs.length(d)); };
    write_keys(cache, pass.sequence(d), pass.num_before, rows(heads.k), rows(heads.v),
               call.config.sparse);
  }
  if (pass.num_before == 0) return {heads.k, heads.v, call.env.key_docs};
  auto so_far = [&](const at::Tensor& x) {
    return x[pass.first_sequence].narrow(0, 0, call.env.key_docs.num_tokens());
  };
  return {so_far(cache.k), so_far(cache.v), call.env.key_docs};
}

// The one place where k and v come from elsewhere: from what was fed before, or, of a split
// sequence, from the ranks before this one. Forward and backward ask alike: what was gathered is
// not kept, it is as large as the line.
Keys visible_keys(const MixerCall& call, const Heads& heads) {
  if (call.env.cached) return kept_keys(call, heads);
  if (const auto& shard = call.env.batch->shard) {
    return {gather_keys(*shard, heads.k), gather_keys(*shard, heads.v), call.env.key_docs};
  }
  return {heads.k, heads.v, call.env.key_docs};
}

// Its way back: from the gradients of all visible keys or values to those of this rank's own.
at::Tensor own_gradient(const MixerCall& call, const at::Tensor& d_visible) {
  const auto& shard = call.env.batch->shard;
  return shard ? scatter_key_gradient(*shard, d_visible) : d_visible;
}

// Documents that are attended alike, and where their rows are; undefined rows: all of them.
struct Run {
  bool sparse;
  Documents q_docs, k_docs;
  at::Tensor q_rows, k_rows;  // int64 on the device

  at::Tensor queries(const at::Tensor& x) const { return pick(x, q_rows); }
  at::Tensor keys(const at::Tensor& x) const { return pick(x, k_rows); }
  const char* lse_name() const { return sparse ? "lse_sparse" : "lse_dense"; }

 private:
  static at::Tensor pick(const at::Tensor& x, const at::Tensor& rows) {
    return rows.defined() ? x.index_select(0, rows) : x;
  }
};

struct Taken {
  Documents docs;
  at::Tensor rows;
};

Taken take_documents(const Documents& docs, const std::vector<int64_t>& which, at::Device device) {
  std::vector<int64_t> starts, rows;
  for (int64_t d : which) {
    const size_t begin = rows.size();
    starts.push_back(static_cast<int64_t>(begin));
    rows.resize(begin + static_cast<size_t>(docs.length(d)));
    std::iota(rows.begin() + static_cast<int64_t>(begin), rows.end(), docs.offsets[d]);
  }
  const auto count = static_cast<int64_t>(rows.size());
  return {Documents::from_starts(starts, count, device), queue_to(at::tensor(rows), device)};
}

std::vector<Run> runs_of(Mixer mixer, const MixerCall& call, const Documents& k_docs,
                         at::Device device) {
  const Documents& q_docs = call.env.batch->docs;
  std::vector<int64_t> which[2];  // dense, sparse
  for (int64_t d = 0; d < k_docs.count(); ++d) {
    const int64_t length =
        std::max({k_docs.length(d), call.env.batch->document_length(d), call.env.planned_tokens});
    const bool sparse =
        mixer == Mixer::kSparse && call.env.sparse && length >= call.config.sparse.dense_len;
    which[sparse].push_back(d);
  }
  std::vector<Run> runs;
  for (const bool sparse : {false, true}) {
    if (which[sparse].empty()) continue;
    if (which[!sparse].empty()) return {{sparse, q_docs, k_docs, {}, {}}};
    Taken q = take_documents(q_docs, which[sparse], device);
    Taken k = take_documents(k_docs, which[sparse], device);
    runs.push_back({sparse, std::move(q.docs), std::move(k.docs), q.rows, k.rows});
  }
  return runs;
}

// o (Tq, NH, HS) of one run.
at::Tensor attend(const MixerCall& call, const Run& run, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v) {
  const ModelConfig& c = call.config;
  const double scale = scale_of(c);
  if (!run.sparse && call.saved == nullptr) {  // faster where no backward follows
    return dense_attention_output(q, k, v, run.q_docs, run.k_docs, scale);
  }
  at::Tensor o, lse;
  if (run.sparse) {
    const at::Tensor blocks = block_select(q, k, run.q_docs, run.k_docs, c.sparse, scale);
    std::tie(o, lse) = block_sparse_attention_forward(q, k, v, blocks, run.q_docs, run.k_docs,
                                                      c.sparse.block_size, scale);
    if (call.saved) call.saved->keep("blocks", blocks, Cost::kAttention);
  } else {
    std::tie(o, lse) = dense_attention_forward(q, k, v, run.q_docs, run.k_docs, scale);
  }
  if (call.saved) call.saved->keep(run.lse_name(), lse, Cost::kAttention);
  return o;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const MixerCall& call, const Run& run, const at::Tensor& d_o, const at::Tensor& q,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& o) {
  const double scale = scale_of(call.config);
  const at::Tensor lse = call.saved->take(run.lse_name());
  if (!run.sparse) {
    return dense_attention_backward(d_o, q, k, v, o, lse, run.q_docs, run.k_docs, scale);
  }
  return block_sparse_attention_backward(d_o, q, k, v, o, lse, call.saved->take("blocks"),
                                         run.q_docs, run.k_docs, call.config.sparse.block_size,
                                         scale);
}

// Adds the gradient of the selection loss to dq and to that of all visible keys, in documents of
// any length: what is dense while it trains is sparse where it grows.
void teach_selection(const MixerCall& call, const at::Tensor& q, const Keys& keys, at::Tensor& dq,
                     at::Tensor& dk) {
  SelectionTeaching& teaching = *call.env.selection;
  const at::Tensor sums =
      block_select_loss(q, keys.k, call.env.batch->docs, keys.docs, call.config.sparse,
                        scale_of(call.config), teaching.options, dq, dk);
  teaching.sums = teaching.sums.defined() ? teaching.sums + sums : sums;
}

}  // namespace

at::Tensor attend_softmax(Mixer mixer, const MixerCall& call, const Heads& heads) {
  if (call.env.cached && call.env.cached->is_step) return step_softmax(mixer, call, heads);
  return find_or_make(call.saved, "attention", Cost::kAttention, [&] {
    const Keys keys = visible_keys(call, heads);
    const std::vector<Run> runs = runs_of(mixer, call, keys.docs, heads.q.device());
    at::Tensor o_THD;
    for (const Run& run : runs) {
      const at::Tensor part =
          attend(call, run, run.queries(heads.q), run.keys(keys.k), run.keys(keys.v));
      if (!run.q_rows.defined()) {
        o_THD = part;
      } else {
        if (!o_THD.defined()) o_THD = at::empty_like(heads.q);
        o_THD.index_copy_(0, run.q_rows, part);
      }
    }
    return o_THD.reshape({heads.q.size(0), call.config.q_size()});
  });
}

Heads attend_softmax_backward(Mixer mixer, const MixerCall& call, const at::Tensor& d_o,
                              const at::Tensor& o, const Heads& heads) {
  const Keys keys = visible_keys(call, heads);
  const std::vector<Run> runs = runs_of(mixer, call, keys.docs, heads.q.device());
  const at::Tensor d_o_THD = d_o.view(heads.q.sizes()), o_THD = o.view(heads.q.sizes());
  at::Tensor dq, dk, dv;
  for (const Run& run : runs) {
    auto [dq_run, dk_run, dv_run] =
        attend_backward(call, run, run.queries(d_o_THD), run.queries(heads.q), run.keys(keys.k),
                        run.keys(keys.v), run.queries(o_THD));
    if (!run.q_rows.defined()) {
      std::tie(dq, dk, dv) = std::tie(dq_run, dk_run, dv_run);
      continue;
    }
    if (!dq.defined()) {  // every row is in one of the two runs
      dq = at::empty_like(heads.q);
      dk = at::empty_like(keys.k);
      dv = at::empty_like(keys.v);
    }
    dq.index_copy_(0, run.q_rows, dq_run);
    dk.index_copy_(0, run.k_rows, dk_run);
    dv.index_copy_(0, run.k_rows, dv_run);
  }
  if (mixer == Mixer::kSparse && call.env.selection) teach_selection(call, heads.q, keys, dq, dk);
  dk = own_gradient(call, dk);
  return {dq, dk, own_gradient(call, dv)};
}

}  // namespace sala
