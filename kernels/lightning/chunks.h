// The chunked form's working parts for composed.cpp: the decays of one call, the moves
// between packed tokens (T, NH, HS) and padded chunks (NH * n, C, HS), and the states at the
// borders of a segment.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/batched_gemm.h"
#include "kernels/check.h"
#include "kernels/lightning/plan.h"

namespace sala {

struct LightningChunks {
  // The decays of a call. All layers of a micro-batch share them, so the last few are kept: making
  // them costs host work and copies to the device, which would stall every layer.
  static std::shared_ptr<const LightningChunks> of(const at::Tensor& q,
                                                   const at::Tensor& slopes_cpu,
                                                   const Documents& docs, double scale);

  Documents docs;
  LightningPlan plan;
  at::Tensor slopes;     // (NH) fp64 on the device
  at::ScalarType dtype;  // of q, k, v
  at::ScalarType wide;   // of states and masks
  int64_t NH, HS, C;
  at::Tensor intra;       // (NH, 1, C, C): scale * D
  at::Tensor from_start;  // (NH, 1, C, 1): scale * lambda^(i+1)

  LightningChunks(const at::Tensor& q, const at::Tensor& slopes_cpu, const Documents& documents,
                  double scale)
      : docs(documents),
        plan(plan_lightning(documents, q.device())),
        slopes(slopes_cpu.to(q.device())),
        dtype(q.scalar_type()),
        wide(accumulate_type(q)),
        NH(q.size(1)),
        HS(q.size(2)),
        C(plan.chunk) {
    const at::Tensor place = at::arange(C, at::kDouble);
    const at::Tensor gap = place.unsqueeze(1) - place.unsqueeze(0);
    // The mask comes before the exponential: no positive exponent is ever taken.
    const at::Tensor causal = gap.masked_fill(gap < 0, INFINITY);
    intra = decay_weights(slopes, causal, wide).mul_(scale).view({NH, 1, C, C});
    from_start = decay_weights(slopes, place + 1, wide).mul_(scale).view({NH, 1, C, 1});
  }

  at::Tensor load(const at::Tensor& x, const LightningSegment& segment) const {
    at::Tensor rows = x.narrow(0, segment.begin, segment.num_tokens());
    if (segment.slot.defined()) {
      rows = at::zeros({segment.num_chunks() * C, NH, HS}, x.options())
                 .index_copy_(0, segment.slot, rows);
    }
    return rows.view({-1, C, NH, HS}).permute({2, 0, 1, 3}).reshape({-1, C, HS});
  }

  void store(at::Tensor& out, const LightningSegment& segment, const at::Tensor& x) const {
    at::Tensor rows = out.narrow(0, segment.begin, segment.num_tokens());
    const at::Tensor by_token = x.view({NH, -1, C, HS}).permute({1, 2, 0, 3});
    if (segment.slot.defined()) {
      rows.copy_(by_token.reshape({-1, NH, HS}).index_select(0, segment.slot));
    } else {
      rows.view({-1, C, NH, HS}).copy_(by_token);
    }
  }

  // lambda^(n-1-j) for every chunk of the segment: (NH, n, C, 1).
  at::Tensor to_end(const LightningSegment& segment) const {
    return remembered({index_of(segment), -1, -1}, [&] {
      return decay_weights(slopes, tail_distance(segment, C), wide).unsqueeze(-1);
    });
  }

  at::Tensor link(const LightningSegment& segment, const LightningPorts& ins,
                  const LightningPorts& outs) const {
    return remembered({index_of(segment), ins.count, outs.count}, [&] {
      return decay_weights(slopes, link_distance(segment, docs, ins, outs), wide);
    });
  }

  // x (NH * n, X, Y) times a weight that broadcasts over (NH, n, X, Y), in the dtype of q.
  at::Tensor weighted(const at::Tensor& x, const at::Tensor& weight) const {
    return (x.view({NH, -1, x.size(1), x.size(2)}) * weight).to(dtype).view(x.sizes());
  }

  // What each chunk adds to the state after it: sum_j lambda^(n-1-j) k_j v_j^T, (NH * n, HS, HS).
  at::Tensor gained(const at::Tensor& kc, const at::Tensor& vc, const at::Tensor& to_end) const {
    return bmm_wide(weighted(kc, to_end).transpose(1, 2), vc);
  }

  // weight o (a across) + (mask inside) b: the part that comes through states and the part within
  // the chunk, which all of o, dq, dk and dv consist of.
  at::Tensor across_and_inside(const at::Tensor& a, const at::Tensor& across,
                               const at::Tensor& weight, const at::Tensor& inside,
                               const at::Tensor& b) const {
    at::Tensor sum = bmm_wide(a, across);
    sum.view({NH, -1, C, HS}).mul_(weight);
    add_bmm_wide(sum, inside, b);
    return sum;
  }

  // scale * (a b^T) o D, (NH * n, C, C).
  at::Tensor masked_scores(const at::Tensor& a, const at::Tensor& b) const {
    at::Tensor scores = bmm_wide(a, b.transpose(1, 2));
    scores.view({NH, -1, C, C}).mul_(intra);
    return scores.to(dtype);
  }

 private:
  using Key = std::array<int64_t, 3>;  // segment, number of in-ports and of out-ports

  int64_t index_of(const LightningSegment& segment) const {
    return &segment - plan.segments.data();
  }

  template <class Make>
  at::Tensor remembered(const Key& key, const Make& make) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    at::Tensor& kept = decays_[key];
    if (!kept.defined()) kept = make();
    return kept;
  }

  mutable std::mutex mutex_;  // forward and backward run on different threads
  mutable std::map<Key, at::Tensor> decays_;
};

// Which documents have a state of their own at the border of a segment: all of them when the caller
// gives (or wants) states, otherwise the one that crosses the border.
inline LightningPorts in_ports(const LightningSegment& segment, bool all) {
  return {segment.first_doc, all ? segment.num_docs() : int64_t{segment.continues_in}};
}
inline LightningPorts out_ports(const LightningSegment& segment, bool all) {
  return all ? LightningPorts{segment.first_doc, segment.num_docs()}
             : LightningPorts{segment.last_doc, int64_t{segment.continues_out}};
}

// States at the ports, (NH, ports, HS, HS): the caller's rows of `states` (D, NH, HS, HS), and
// `carry` (NH, 1, HS, HS) for the document that crosses the border (port number `crossing`).
inline at::Tensor port_states(const LightningPorts& ports, const at::Tensor& states,
                              const at::Tensor& carry, bool crosses, int64_t crossing) {
  if (ports.count == 0) return {};
  if (!states.defined()) return carry;
  at::Tensor x = states.narrow(0, ports.first, ports.count).transpose(0, 1).clone();
  if (crosses) x.narrow(1, crossing, 1).copy_(carry);
  return x.contiguous();
}

// Which rows of a link (its chunks or its ports) are of a document: contiguous, maybe none.
inline LightningRows chunk_rows(const LightningSegment& segment, int64_t doc) {
  const auto is_before = [](const LightningChunk& c, int64_t d) { return c.doc < d; };
  const auto begin = segment.chunks.begin(), end = segment.chunks.end();
  const auto first = std::lower_bound(begin, end, doc, is_before);
  return {first - begin, std::lower_bound(first, end, doc + 1, is_before) - first};
}
inline LightningRows port_rows(const LightningPorts& ports, int64_t doc) {
  const int64_t row = doc - ports.first;
  return row < 0 || row >= ports.count ? LightningRows{} : LightningRows{row, 1};
}

// link (NH, R, n + P) times the states of the chunks (NH * n, HS, HS) and of the ports `from`
// (NH, P, HS, HS) -> (NH, R, HS, HS). rows_of(document) tells which of the R rows are its. One
// product per document: across documents links are zero, which would let infinities through.
template <class RowsOf>
at::Tensor transfer(const at::Tensor& link, const LightningSegment& segment, const RowsOf& rows_of,
                    const at::Tensor& chunks, const LightningPorts& from, const at::Tensor& ports) {
  const int64_t NH = link.size(0), HS = chunks.size(1), n = segment.num_chunks();
  const at::Tensor flat = chunks.view({NH, n, HS * HS});
  const at::Tensor flat_ports =
      ports.defined() ? ports.reshape({NH, from.count, HS * HS}) : at::Tensor();
  at::Tensor sum = at::zeros({NH, link.size(1), HS * HS}, chunks.options());
  for (int64_t doc = segment.first_doc; doc <= segment.last_doc; ++doc) {
    const LightningRows rows = rows_of(doc), inside = chunk_rows(segment, doc);
    if (rows.count == 0) continue;
    const at::Tensor to = link.narrow(1, rows.first, rows.count);
    at::Tensor out = sum.narrow(1, rows.first, rows.count);
    out.baddbmm_(to.narrow(2, inside.first, inside.count),
                 flat.narrow(1, inside.first, inside.count));
    const LightningRows port = port_rows(from, doc);
    if (port.count == 0) continue;
    out.baddbmm_(to.narrow(2, n + port.first, 1), flat_ports.narrow(1, port.first, 1));
  }
  return sum.view({NH, -1, HS, HS});
}
// To the start of every chunk (its end, where the link is transposed), and to the ports `to`.
inline at::Tensor to_chunks(const at::Tensor& link, const LightningSegment& segment,
                            const at::Tensor& chunks, const LightningPorts& from,
                            const at::Tensor& ports) {
  const auto rows_of = [&](int64_t doc) { return chunk_rows(segment, doc); };
  return transfer(link.narrow(1, 0, segment.num_chunks()), segment, rows_of, chunks, from, ports);
}
inline at::Tensor to_ports(const at::Tensor& link, const LightningSegment& segment,
                           const LightningPorts& to, const at::Tensor& chunks,
                           const LightningPorts& from, const at::Tensor& ports) {
  const auto rows_of = [&](int64_t doc) { return port_rows(to, doc); };
  return transfer(link.narrow(1, segment.num_chunks(), to.count), segment, rows_of, chunks, from,
                  ports);
}

}  // namespace sala
