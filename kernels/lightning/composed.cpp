// Lightning attention (Qin et al. 2024; with fixed slopes it is RetNet's retention,
// arXiv:2307.08621) in chunked form, composed of LibTorch ops. With i, j the places in a chunk of n
// tokens and S the state before it:
//   o      = scale * [ ((q k^T) o D) v + lambda^(i+1) q S ],   D_ij = lambda^(i-j) for i >= j
//   S_next = lambda^n S + sum_j lambda^(n-1-j) k_j v_j^T
// The backward has the same shape, with states that flow from the right. Work goes segment by
// segment (plan.h), so that temporaries do not grow with T and a segment costs some
// twenty launches.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <deque>
#include <vector>

#include "kernels/check.h"
#include "kernels/lightning/chunks.h"
#include "kernels/lightning/composed.h"

namespace sala {

namespace {

// Decoding: every document is one token, so the recurrence itself is the shortest form.
std::tuple<at::Tensor, at::Tensor> single_step(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& v, const at::Tensor& slopes,
                                               double scale, const at::Tensor& initial_state) {
  const at::ScalarType wide = accumulate_type(q);
  at::Tensor state = k.to(wide).unsqueeze(-1) * v.to(wide).unsqueeze(-2);  // (D, NH, HS, HS)
  if (initial_state.defined()) {
    const at::Tensor decay = slopes.neg().exp_().to(wide).to(q.device());
    state.addcmul_(initial_state, decay.view({1, -1, 1, 1}));
  }
  const at::Tensor o = at::matmul(q.to(wide).unsqueeze(-2), state).squeeze(-2).mul_(scale);
  return {o.to(q.scalar_type()), state};
}

constexpr size_t kKeptForms = 4;

}  // namespace

std::shared_ptr<const LightningChunks> LightningChunks::of(const at::Tensor& q,
                                                           const at::Tensor& slopes_cpu,
                                                           const Documents& docs, double scale) {
  struct Kept {
    at::Tensor slopes;
    at::TensorOptions options;
    int64_t HS;
    double scale;
    std::shared_ptr<const LightningChunks> form;
  };
  static std::mutex mutex;
  static auto& recent = *new std::deque<Kept>;  // never destroyed: its tensors may outlive CUDA
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Kept& kept : recent) {
    if (kept.form->docs.offsets == docs.offsets && kept.scale == scale && kept.HS == q.size(2) &&
        kept.options.device() == q.device() && kept.options.dtype() == q.dtype() &&
        at::equal(kept.slopes, slopes_cpu)) {
      return kept.form;
    }
  }
  auto form = std::make_shared<const LightningChunks>(q, slopes_cpu, docs, scale);
  recent.push_front({slopes_cpu.clone(), q.options(), q.size(2), scale, form});
  if (recent.size() > kKeptForms) recent.pop_back();
  return form;
}

std::tuple<at::Tensor, at::Tensor> lightning_forward_composed(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slopes,
    const Documents& docs, double scale, const at::Tensor& initial_state) {
  const at::NoGradGuard no_grad;
  if (docs.longest == 1) return single_step(q, k, v, slopes, scale, initial_state);
  const auto shared = LightningChunks::of(q, slopes, docs, scale);
  const LightningChunks& form = *shared;
  at::Tensor o = at::empty_like(q);
  at::Tensor final_state =
      at::empty({docs.count(), form.NH, form.HS, form.HS}, q.options().dtype(form.wide));
  at::Tensor carry;  // (NH, 1, HS, HS)
  for (const LightningSegment& segment : form.plan.segments) {
    const LightningPorts ins = in_ports(segment, initial_state.defined());
    const LightningPorts outs = out_ports(segment, true);
    const at::Tensor link = form.link(segment, ins, outs);
    const at::Tensor entering = port_states(ins, initial_state, carry, segment.continues_in, 0);
    const at::Tensor qc = form.load(q, segment), kc = form.load(k, segment);
    const at::Tensor vc = form.load(v, segment);
    const at::Tensor gained = form.gained(kc, vc, form.to_end(segment));
    const at::Tensor before =
        to_chunks(link, segment, gained, ins, entering).view(gained.sizes()).to(form.dtype);
    const at::Tensor leaving = to_ports(link, segment, outs, gained, ins, entering);

    form.store(o, segment,
               form.across_and_inside(qc, before, form.from_start, form.masked_scores(qc, kc), vc));
    // The row of a document that goes on is overwritten by the segment in which it ends.
    final_state.narrow(0, outs.first, outs.count).copy_(leaving.transpose(0, 1));
    if (segment.continues_out) carry = leaving.narrow(1, outs.count - 1, 1);
  }
  return {o, final_state};
}

namespace {

// The state that crosses into each segment, (NH, 1, HS, HS) or undefined: a forward pass over k and
// v.
std::vector<at::Tensor> crossing_states(const LightningChunks& form, const at::Tensor& k,
                                        const at::Tensor& v, const at::Tensor& initial_state) {
  const auto& segments = form.plan.segments;
  std::vector<at::Tensor> carry(segments.size());
  for (size_t i = 0; i + 1 < segments.size(); ++i) {
    const LightningSegment& segment = segments[i];
    if (!segment.continues_out) continue;
    const LightningPorts ins = in_ports(segment, initial_state.defined());
    const LightningPorts outs = out_ports(segment, false);
    const at::Tensor gained =
        form.gained(form.load(k, segment), form.load(v, segment), form.to_end(segment));
    const at::Tensor link = form.link(segment, ins, outs);
    carry[i + 1] = to_ports(link, segment, outs, gained, ins,
                            port_states(ins, initial_state, carry[i], segment.continues_in, 0));
  }
  return carry;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward_composed(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& slopes, const Documents& docs, double scale, const at::Tensor& initial_state,
    const at::Tensor& d_final_state) {
  const at::NoGradGuard no_grad;
  const auto shared = LightningChunks::of(q, slopes, docs, scale);
  const LightningChunks& form = *shared;
  const std::vector<at::Tensor> carry = crossing_states(form, k, v, initial_state);
  at::Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
  at::Tensor d_initial = initial_state.defined() ? at::empty_like(initial_state) : at::Tensor();
  at::Tensor d_carry;  // (NH, 1, HS, HS): gradient of the state that crosses to the right
  for (size_t i = form.plan.segments.size(); i-- > 0;) {
    const LightningSegment& segment = form.plan.segments[i];
    const LightningPorts ins = in_ports(segment, initial_state.defined());
    const LightningPorts outs = out_ports(segment, d_final_state.defined());
    const at::Tensor link = form.link(segment, ins, outs);
    const at::Tensor back = link.transpose(1, 2);
    const at::Tensor to_end = form.to_end(segment);
    const at::Tensor qc = form.load(q, segment), kc = form.load(k, segment);
    const at::Tensor vc = form.load(v, segment), gc = form.load(d_o, segment);

    const at::Tensor gained = form.gained(kc, vc, to_end);
    const at::Tensor entering = port_states(ins, initial_state, carry[i], segment.continues_in, 0);
    const at::Tensor before =
        to_chunks(link, segment, gained, ins, entering).view(gained.sizes()).to(form.dtype);
    // The same walk from the right: what each chunk's queries ask of the state before it.
    const at::Tensor asked = bmm_wide(form.weighted(qc, form.from_start).transpose(1, 2), gc);
    const at::Tensor d_leaving =
        port_states(outs, d_final_state, d_carry, segment.continues_out, outs.count - 1);
    const at::Tensor d_after =
        to_chunks(back, segment, asked, outs, d_leaving).view(gained.sizes()).to(form.dtype);
    if (ins.count > 0) {
      const at::Tensor d_entering = to_ports(back, segment, ins, asked, outs, d_leaving);
      if (segment.continues_in) d_carry = d_entering.narrow(1, 0, 1);
      // The row of a document that began earlier is overwritten by the segment in which it begins.
      if (d_initial.defined()) {
        d_initial.narrow(0, ins.first, ins.count).copy_(d_entering.transpose(0, 1));
      }
    }

    const at::Tensor scores = form.masked_scores(qc, kc);
    const at::Tensor d_scores = form.masked_scores(gc, vc);
    form.store(dq, segment,
               form.across_and_inside(gc, before.transpose(1, 2), form.from_start, d_scores, kc));
    form.store(
        dk, segment,
        form.across_and_inside(vc, d_after.transpose(1, 2), to_end, d_scores.transpose(1, 2), qc));
    form.store(dv, segment,
               form.across_and_inside(kc, d_after, to_end, scores.transpose(1, 2), gc));
  }
  return {dq, dk, dv, d_initial};
}

}  // namespace sala
