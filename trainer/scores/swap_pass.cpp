// The prefix below the swapped layer once per row, the layer itself, and the blocks above it.
#include "trainer/scores/swap_pass.h"

#include "kernels/ops.h"
#include "model/block.h"
#include "model/convert.h"
#include "model/forward.h"

namespace sala {

SwapPass::SwapPass(const Run& run, Measure measure)
    : measure_(measure), linear_(hybrid_config(run.source, {}, run.recipe.model.sparse, false)) {}

at::Tensor SwapPass::operator()(Run& run, int64_t number, const ScoreRow& row, int64_t layer) {
  const at::NoGradGuard no_grad;
  Network& teacher = run.teacher();
  const Model& model = teacher.model;
  if (number != number_) keep_inputs(run, row);
  number_ = number;
  const Env env = model.env(batch_, false), linear_env = linear_.env(batch_, false);
  at::Tensor x;
  {
    const Lease block = teacher.parameters.lease(Model::block_part(layer));
    const Lease mixer = run.aligned->lease(static_cast<size_t>(layer));
    x = block_forward(
        {linear_.config(), layer, Mixer::kLightning, block[0], mixer[0], linear_env, nullptr},
        inputs_[layer]);
  }
  x = run_units(model, teacher.parameters, layer + 2, model.units().size(), x, env);
  const Lease head = teacher.parameters.lease(model.head_parts());
  x = model.final_norm().forward(head, x, env, nullptr);
  const at::Tensor& w = model.head_weight(head);
  const at::Tensor values =
      measure_ == kHit ? hits(x, w) : divergence(x, w, model.config().logit_scale);
  return values.to(at::kDouble).cpu();
}

void SwapPass::keep_inputs(Run& run, const ScoreRow& row) {
  Network& teacher = run.teacher();
  const Model& model = teacher.model;
  batch_ = single_document(row.ids, 0, run.world.device());
  const Env env = model.env(batch_, false);
  inputs_.clear();
  at::Tensor x;
  for (size_t u = 0; u < model.units().size(); ++u) {
    if (u > 0) inputs_.push_back(x);  // input of block u - 1
    x = run_units(model, teacher.parameters, u, u + 1, x, env);
  }
  const Lease head = teacher.parameters.lease(model.head_parts());
  final_ = model.final_norm().forward(head, x, env, nullptr);
}

at::Tensor SwapPass::divergence(const at::Tensor& x, const at::Tensor& w, double scale) const {
  const at::Tensor weight = at::ones({x.size(0)}, x.options().dtype(at::kFloat));
  return linear_kl(x, w, scale, final_, w, scale, {}, weight, DistillConfig{}).kl_T;
}

// In pieces, so that no (T, V) tensor exists.
at::Tensor SwapPass::hits(const at::Tensor& x, const at::Tensor& w) const {
  constexpr int64_t kPiece = 256;
  const int64_t T = x.size(0);
  at::Tensor hit = at::zeros({T}, x.options().dtype(at::kDouble));
  for (int64_t t = 0; t < T - 1; t += kPiece) {
    const int64_t count = std::min(kPiece, T - 1 - t);
    const at::Tensor likeliest = at::linear(x.narrow(0, t, count), w).argmax(1);
    hit.narrow(0, t, count).copy_(likeliest == batch_.ids.narrow(0, t + 1, count));
  }
  return hit;
}

}  // namespace sala
