// Forward unit by unit, the loss, backward unit by unit, one update. No rank takes a branch that
// another does not.
#include "trainer/step.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <numeric>

namespace sala {

namespace {

at::Tensor run_unit(const Model& model, size_t u, const at::Tensor& x, const Env& env,
                    bool keep_graph, Saved& saved) {
  saved.x = x.defined() ? x.detach().requires_grad_(true) : x;
  at::AutoGradMode grad_mode(keep_graph);
  at::Tensor y = model.units()[u]->forward(model.unit_weights(u), saved.x, env, &saved);
  if (keep_graph) saved.y = y;
  return y.detach();
}

// Gradient of unit u's input; its weights' gradients are added to their parts' flat fp32 gradients.
at::Tensor differentiate_unit(Model& model, size_t u, const at::Tensor& dy, const Env& env,
                              Saved& saved) {
  if (!saved.y.defined()) run_unit(model, u, saved.x, env, /*keep_graph=*/true, saved);
  torch::autograd::variable_list inputs;
  std::vector<std::pair<Weights*, size_t>> targets;
  if (saved.x.defined()) inputs.push_back(saved.x);
  for (size_t part : model.units()[u]->parts) {
    Weights& weights = model.parts()[part];
    for (size_t i = 0; i < weights.views().size(); ++i) {
      if (!weights.views()[i].requires_grad()) continue;
      inputs.push_back(weights.views()[i]);
      targets.emplace_back(&weights, i);
    }
  }
  at::Tensor dx;
  if (!inputs.empty()) {
    auto grads = torch::autograd::grad({saved.y}, inputs, {dy}, /*retain_graph=*/false,
                                       /*create_graph=*/false, /*allow_unused=*/true);
    const size_t first = saved.x.defined() ? 1 : 0;
    if (first) dx = grads[0];
    for (size_t i = 0; i < targets.size(); ++i) {
      if (grads[first + i].defined()) {
        targets[i].first->accumulate_grad(targets[i].second, grads[first + i]);
      }
    }
  }
  saved = {};
  return dx;
}

// Losses and gradient norms of the whole world, and whether every number in them is one. The host
// waits for the device here; the rest of a step is queued, but for lightning attention where no
// kernel takes it (kernels/lightning/composed.cpp copies its tables with a wait).
StepResult global_result(at::Tensor& losses, const Optimizer& optimizer, Comm& comm) {
  comm.all_reduce_sum(losses);
  StepResult result;
  result.part_norms = optimizer.part_norms();
  result.loss = to_host(losses);
  const auto& norms = result.part_norms;
  result.grad_norm = std::sqrt(std::inner_product(norms.begin(), norms.end(), norms.begin(), 0.0));
  result.finite = std::isfinite(result.loss.loss) && std::isfinite(result.grad_norm);
  return result;
}

}  // namespace

StepResult train_step(Model& model, Loss& loss, std::span<const Batch> micro_batches,
                      Sharding& sharding, Optimizer& optimizer, Comm& comm,
                      const StepOptions& options) {
  const size_t num_units = model.units().size();
  auto each_part = [&](size_t u, auto&& action) {
    for (size_t part : model.units()[u]->parts) action(part);
  };
  at::Tensor losses = zero_loss(model.embedding().flat.device());
  for (size_t b = 0; b < micro_batches.size(); ++b) {
    const Env env = model.env(micro_batches[b], options.sparse);
    std::vector<Saved> saved(num_units);

    at::Tensor x;
    for (size_t u = 0; u < num_units; ++u) {
      each_part(u, [&](size_t part) { sharding.gather(part); });
      if (u + 1 < num_units) each_part(u + 1, [&](size_t part) { sharding.prefetch(part); });
      x = run_unit(model, u, x, env, !options.recompute, saved[u]);
      each_part(u, [&](size_t part) { sharding.release(part); });
    }

    at::Tensor dx;
    losses += loss.forward_backward(model, x, micro_batches[b], dx);

    for (size_t u = num_units; u-- > 0;) {
      each_part(u, [&](size_t part) { sharding.gather(part); });
      if (u > 0) each_part(u - 1, [&](size_t part) { sharding.prefetch(part); });
      dx = differentiate_unit(model, u, dx, env, saved[u]);
      each_part(u, [&](size_t part) { sharding.release(part); });
      // A tied head adds to the embedding's gradient first; the embedding is unit 0, reduced last.
      if (b + 1 == micro_batches.size()) each_part(u, [&](size_t part) { sharding.reduce(part); });
    }
  }
  if (micro_batches.empty()) {  // no rows here: join the others' reductions, in their order
    for (size_t u = num_units; u-- > 0;) each_part(u, [&](size_t part) { sharding.reduce(part); });
  }
  sharding.finish();

  StepResult result = global_result(losses, optimizer, comm);
  if (!result.finite) {
    optimizer.zero_grad();
    return result;
  }
  const bool clips = options.clip > 0 && result.grad_norm > options.clip;
  const double scale = clips ? options.clip / result.grad_norm : 1.0;
  optimizer.step(options.lr, std::vector<double>(result.part_norms.size(), scale));
  return result;
}

}  // namespace sala
