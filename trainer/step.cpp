// Forward unit by unit, the loss, backward unit by unit; then one update. No rank takes a branch
// that another does not.
#include "trainer/step.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "kernels/range.h"

namespace sala {

namespace {

void enter(StepClock* clock, Phase phase) {
  if (clock) clock->enter(phase);
}

std::vector<Gradient*> gradients_of(Parameters& parameters, std::span<const size_t> parts) {
  std::vector<Gradient*> gradients;
  for (size_t part : parts) gradients.push_back(&parameters.gradient(part));
  return gradients;
}

// Final norm, loss, and back to the last block's output. A tied head adds to the embedding's
// gradient, which is reduced after the embedding's own backward.
at::Tensor head_passes(Network& network, Loss& loss, const at::Tensor& x, const Batch& batch,
                       const Env& env, bool last, at::Tensor& losses) {
  const Range range("head and loss");
  const Model& model = network.model;
  Parameters& parameters = network.parameters;
  const Lease head = parameters.lease(model.head_parts());
  parameters.hint(model.units().back()->parts);
  const auto gradients = gradients_of(parameters, model.head_parts());
  Saved saved;
  saved.input = x;
  const at::Tensor normed = model.final_norm().forward(head, x, env, &saved);
  at::Tensor dy;
  const at::Tensor d_head =
      parameters.gradient(model.head_weight_part()).view(model.head_weight_name());
  losses = loss.forward_backward({model, head}, normed, batch, dy, d_head);
  const at::Tensor dx = model.final_norm().backward(head, dy, env, saved, gradients);
  parameters.reduce(model.head_parts().front(), last);
  return dx;
}

// Sums losses and squared norms over all ranks: the one time in a step that the host waits for the
// device.
StepResult global_result(const at::Tensor& losses, const at::Tensor& squares, bool counts,
                         Comm& comm) {
  at::Tensor sums = at::cat({losses, counts ? squares : at::zeros_like(squares)});
  comm.all_reduce_sum(sums);
  const at::Tensor host = sums.cpu();
  const double* values = host.const_data_ptr<double>();
  StepResult result;
  result.losses.assign(values, values + losses.numel());
  double square = 0;
  for (int64_t i = losses.numel(); i < host.numel(); ++i) {
    result.part_norms.push_back(std::sqrt(values[i]));
    square += values[i];
  }
  result.grad_norm = std::sqrt(square);
  result.finite =
      std::all_of(values, values + host.numel(), [](double v) { return std::isfinite(v); });
  return result;
}

std::vector<double> gradient_scales(const StepResult& result, const StepOptions& options) {
  std::vector<double> scales;
  for (double part_norm : result.part_norms) {
    const double norm = options.clip_each_part ? part_norm : result.grad_norm;
    scales.push_back(options.clip > 0 && norm > options.clip ? options.clip / norm : 1.0);
  }
  return scales;
}

}  // namespace

at::Tensor model_passes(Network& network, Loss& loss, const Batch& batch, bool last,
                        const PassOptions& options) {
  const Model& model = network.model;
  Parameters& parameters = network.parameters;
  const auto& units = model.units();
  enter(options.clock, Phase::kForward);
  {
    const Range range("loss before the forward (teacher)");
    loss.prepare(batch);
  }
  Env env = model.env(batch, options.sparse);
  SelectionTeaching selection{options.selection, {}};
  const bool teaches = options.selection.weight > 0;
  if (teaches && !batch.idle) env.selection = &selection;
  env.matmul = options.matmul;
  std::vector<Saved> saved(units.size());

  // A hint starts the next unit's gather while this one computes; a lease's end lets weights go.
  at::Tensor x;
  for (size_t u = 0; u < units.size(); ++u) {
    const Lease weights = parameters.lease(units[u]->parts);
    parameters.hint(u + 1 < units.size() ? units[u + 1]->parts : model.head_parts());
    saved[u].input = x;
    saved[u].will_forget = options.recompute;
    if (options.offload) options.offload->put(u, x);
    x = units[u]->forward(weights, x, env, &saved[u]);
    saved[u].trim(options.recompute);  // backward makes it again
    if (options.offload) saved[u].input.reset();
  }
  if (options.offload) options.offload->hint(units.size() - 1);

  at::Tensor losses;
  at::Tensor dx = head_passes(network, loss, x, batch, env, last, losses);
  x.reset();

  enter(options.clock, Phase::kBackward);
  for (size_t u = units.size(); u-- > 0;) {
    const Lease weights = parameters.lease(units[u]->parts);
    if (u > 0) parameters.hint(units[u - 1]->parts);
    if (options.offload) saved[u].input = options.offload->take(u);
    if (options.offload && u > 0) options.offload->hint(u - 1);
    if (saved[u].trimmed()) {
      const Range range("recompute");
      units[u]->forward(weights, saved[u].input, env, &saved[u]);
    }
    dx = units[u]->backward(weights, dx, env, saved[u], gradients_of(parameters, units[u]->parts));
    saved[u] = {};
    for (size_t part : units[u]->parts) parameters.reduce(part, last);
  }
  if (!teaches) return losses;
  return at::cat(
      {losses, selection.sums.defined() ? selection.sums : losses.new_zeros({kNumSelectionSums})});
}

StepResult take_step(std::span<const Batch> micro_batches, const Passes& passes,
                     Parameters& trained, Optimizer& optimizer, Comm& comm,
                     const StepOptions& options) {
  const at::NoGradGuard no_grad;
  at::Tensor losses;
  for (size_t b = 0; b < micro_batches.size(); ++b) {
    const at::Tensor part = passes(micro_batches[b], b + 1 == micro_batches.size());
    losses = losses.defined() ? losses + part : part;
  }
  trained.finish_reductions();

  enter(options.clock, Phase::kOptimizer);
  const Range range("optimizer");
  StepResult result =
      global_result(losses, optimizer.part_square_sums(), trained.is_first_holder(), comm);
  result.updated = result.finite && (!options.accepts || options.accepts(result));
  if (result.updated) {
    optimizer.step(options.lr, gradient_scales(result, options));
  } else {
    trained.zero_gradients();
  }
  return result;
}

}  // namespace sala
