// sala-bench: the whole lightning mixer without its GEMMs, from our ops and from LibTorch's.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <tuple>

#include "kernels/ops.h"
#include "model/rope.h"
#include "trainer/bench/composition.h"
#include "trainer/bench/op.h"

namespace sala {

namespace {

// What its ops move when each reads its inputs once and writes its outputs once: norm and RoPE of q
// and of k, attention, norm and gate; angles and statistics are left out.
double forward_bytes(const BenchShape& s) {
  return (2 * 2 + 4 + 3) * s.head_values() * s.element_bytes();
}
double backward_bytes(const BenchShape& s) {
  return (2 * 3 + 7 + 5) * s.head_values() * s.element_bytes();
}

MixerInputs mixer_inputs(const BenchShape& s) {
  MixerInputs in;
  in.q = s.normal_heads();
  in.k = at::randn_like(in.q);
  in.v = at::randn_like(in.q);
  in.z = s.normal({s.tokens, s.heads * s.head_size});
  in.q_weight = at::ones({s.head_size}, in.q.options());
  in.k_weight = at::ones_like(in.q_weight);
  in.o_weight = at::ones({s.heads * s.head_size}, in.q.options());
  const at::Tensor position = at::arange(s.tokens, at::TensorOptions(s.device).dtype(at::kLong));
  const RopeTable rope = rope_table(RopeConfig(), s.head_size, s.tokens, position, s.tokens);
  in.cos = rope.cos;
  in.sin = rope.sin;
  in.slopes = lightning_slopes(s.heads);
  in.documents = s.documents;
  in.scale = 1.0 / std::sqrt(double(s.head_size));
  return in;
}

// What the forward pass leaves for the backward.
struct MixerSaved {
  at::Tensor q, k, q_rstd, k_rstd, o, o_rstd;
};

at::Tensor run_forward(const MixerInputs& in, const Documents& docs, MixerSaved& saved) {
  std::tie(saved.q, saved.q_rstd) = qk_norm_rope_forward(in.q, in.q_weight, in.cos, in.sin, in.eps);
  std::tie(saved.k, saved.k_rstd) = qk_norm_rope_forward(in.k, in.k_weight, in.cos, in.sin, in.eps);
  saved.o =
      std::get<0>(lightning_forward(saved.q, saved.k, in.v, in.slopes, docs, in.scale, {}, false))
          .view_as(in.z);
  at::Tensor y;
  std::tie(y, saved.o_rstd) = gated_norm_forward(saved.o, in.z, in.o_weight, in.eps);
  return y;
}

BenchTensors run_backward(const at::Tensor& dy, const MixerInputs& in, const Documents& docs,
                          const MixerSaved& saved) {
  auto [d_o, dz, d_o_weight] = gated_norm_backward(dy, saved.o, in.z, in.o_weight, saved.o_rstd);
  auto [dq_turned, dk_turned, dv, d_initial] =
      lightning_backward(d_o.view_as(in.v), saved.q, saved.k, in.v, in.slopes, docs, in.scale);
  auto [dq, dq_weight] =
      qk_norm_rope_backward(dq_turned, in.q, in.q_weight, saved.q_rstd, in.cos, in.sin);
  dq_turned.reset();
  auto [dk, dk_weight] =
      qk_norm_rope_backward(dk_turned, in.k, in.k_weight, saved.k_rstd, in.cos, in.sin);
  return {dq, dk, dv, dz};
}

BenchRun mixer_forward_run(const BenchShape& s) {
  const MixerInputs in = mixer_inputs(s);
  const Documents docs = s.packed();
  return [=]() -> BenchTensors {
    MixerSaved saved;
    const at::Tensor y = run_forward(in, docs, saved);
    return {y, saved.q, saved.k, saved.o};
  };
}

BenchRun mixer_backward_run(const BenchShape& s) {
  const MixerInputs in = mixer_inputs(s);
  const Documents docs = s.packed();
  MixerSaved saved;
  const at::Tensor dy = at::randn_like(run_forward(in, docs, saved));
  return [=]() -> BenchTensors { return run_backward(dy, in, docs, saved); };
}

MixerInputs differentiable_inputs(const BenchShape& s) {
  MixerInputs in = mixer_inputs(s);
  for (at::Tensor* x : {&in.q, &in.k, &in.v, &in.z, &in.q_weight, &in.k_weight, &in.o_weight}) {
    x->requires_grad_();
  }
  return in;
}

BenchRun composed_forward_run(const BenchShape& s) {
  const MixerInputs in = differentiable_inputs(s);
  return [=]() -> BenchTensors {
    const at::AutoGradMode record(true);  // what training pays: intermediates are kept
    return {composed_mixer(in).detach()};
  };
}

BenchRun composed_backward_run(const BenchShape& s) {
  const MixerInputs in = differentiable_inputs(s);
  const at::AutoGradMode record(true);
  const at::Tensor y = composed_mixer(in), dy = at::randn_like(y.detach());
  return [=]() -> BenchTensors {
    return torch::autograd::grad(
        {y}, {in.q, in.k, in.v, in.z, in.q_weight, in.k_weight, in.o_weight}, {dy},
        /*retain_graph=*/true);
  };
}

}  // namespace

std::vector<BenchOp> mixer_bench_ops() {
  constexpr auto kHeads = BenchSweep::kHeads;
  return {
      {"mixer", "fwd", kHeads, head_shape_text, forward_bytes, {}, mixer_forward_run},
      {"mixer", "bwd", kHeads, head_shape_text, backward_bytes, {}, mixer_backward_run},
      {"composition", "fwd", kHeads, head_shape_text, forward_bytes, {}, composed_forward_run},
      {"composition", "bwd", kHeads, head_shape_text, backward_bytes, {}, composed_backward_run},
  };
}

}  // namespace sala
