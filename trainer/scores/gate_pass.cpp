// Teacher forward, gated blocks forward, the loss, and gated blocks backward.
#include "trainer/scores/gate_pass.h"

#include "kernels/ops.h"
#include "model/forward.h"
#include "model/gated_block.h"

namespace sala {

namespace {

struct Pass {
  Run& run;
  Network& teacher;
  const Model& linear;
  Batch batch;
  Env env, linear_env;
  std::span<const double> gates;
  std::vector<GatedSaved> saved;

  int64_t num_layers() const { return teacher.model.config().num_layers; }
  // Calls `pass(call)` with the weights of layer l and a hint of those of `next`.
  template <class F>
  void with_layer(int64_t l, std::span<const size_t> next, const F& pass) {
    const Lease unit = teacher.parameters.lease(teacher.model.units()[l + 1]->parts);
    const Lease mixer = run.aligned->lease(static_cast<size_t>(l));
    if (!next.empty()) teacher.parameters.hint(next);
    pass(GatedCall{l, gates[l], teacher.model.config(), linear.config(), unit[0], unit[1], mixer[0],
                   env, linear_env});
  }
};

// Back from the loss to the last block's output; the two means of the KL.
at::Tensor head_pass(Pass& pass, const ScoreRow& row, const at::Tensor& x,
                     const at::Tensor& x_teacher, at::Tensor& kl) {
  const Model& model = pass.teacher.model;
  const Lease head = pass.teacher.parameters.lease(model.head_parts());
  pass.teacher.parameters.hint(model.units().back()->parts);
  const auto wide = at::promote_types(at::kFloat, x.scalar_type());
  const at::Tensor plain = (row.plain / row.plain.sum()).to(x.device());
  const at::Tensor recall = (row.recall / row.recall.sum()).to(x.device());
  Saved saved;
  saved.input = x;
  const at::Tensor normed = model.final_norm().forward(head, x, pass.env, &saved);
  const at::Tensor& w = model.head_weight(head);
  const double scale = model.config().logit_scale;
  at::Tensor dy;
  const VocabLoss loss = linear_kl(normed, w, scale, x_teacher, w, scale, {},
                                   (plain + recall).to(wide), DistillConfig{}, &dy);
  const at::Tensor kl_T = loss.kl_T.to(at::kDouble);
  kl = at::stack({(kl_T * plain).sum(), (kl_T * recall).sum()});
  Gradient frozen;
  const std::vector<Gradient*> none(model.head_parts().size(), &frozen);
  return model.final_norm().backward(head, dy, pass.env, saved, none);
}

}  // namespace

at::Tensor gate_pass(Run& run, const Model& linear, const ScoreRow& row,
                     std::span<const double> gates) {
  const at::NoGradGuard no_grad;
  Network& teacher = run.teacher();
  const Model& model = teacher.model;
  const int64_t num_layers = model.config().num_layers;
  Pass pass{run, teacher, linear, single_document(row.ids, 0, run.world.device()),
            {},  {},      gates,  std::vector<GatedSaved>(static_cast<size_t>(num_layers))};
  pass.env = model.env(pass.batch, false);
  pass.linear_env = linear.env(pass.batch, false);
  const auto& units = model.units();
  const at::Tensor x_teacher = hidden(model, teacher.parameters, pass.env);

  at::Tensor x = run_units(model, teacher.parameters, 0, 1, {}, pass.env, units[1]->parts);
  for (int64_t l = 0; l < num_layers; ++l) {
    const std::vector<size_t> next = l + 1 < num_layers ? units[l + 2]->parts : model.head_parts();
    pass.with_layer(l, next, [&](const GatedCall& call) {
      x = gated_forward(call, x, pass.saved[l]);
      pass.saved[l].trim(Recompute::kFull);
    });
  }
  at::Tensor kl;
  at::Tensor dx = head_pass(pass, row, x, x_teacher, kl);
  x.reset();

  at::Tensor d_gates = at::zeros({num_layers}, kl.options());
  for (int64_t l = num_layers; l-- > 0;) {
    const std::vector<size_t> next = l > 0 ? units[l]->parts : std::vector<size_t>();
    pass.with_layer(l, next, [&](const GatedCall& call) {
      gated_forward(call, pass.saved[l].block.input, pass.saved[l]);
      GatedGradient gradient = gated_backward(call, dx, pass.saved[l]);
      dx = gradient.dx;
      d_gates[l] = gradient.d_gate_T.sum(at::kDouble);
      pass.saved[l] = {};
    });
  }
  return at::cat({kl, d_gates});
}

}  // namespace sala
