// AdamW on segments of flat parts that train with equal settings.
#include "trainer/optimizer.h"

#include "kernels/ops.h"

namespace sala {

TrainedPart make_trained(Weights& weights) {
  return {&weights,
          weights.flat.scalar_type() == at::kFloat ? weights.flat : weights.flat.to(at::kFloat)};
}

void refresh(TrainedPart& part) {
  at::NoGradGuard no_grad;
  if (!part.master.is_same(part.weights->flat)) part.weights->flat.copy_(part.master);
}

Optimizer::Optimizer(std::vector<TrainedPart> parts, const OptimizerOptions& options)
    : options_(options) {
  for (TrainedPart& part : parts) {
    PartState state{part, {}, {}, {}};
    const Layout& layout = part.weights->layout();
    for (size_t i = 0; i < layout.entries.size(); ++i) {
      const Entry& entry = layout.entries[i];
      const ParameterRule rule = options.rule_for(entry.name);
      at::Tensor view = part.weights->views()[i];
      view.requires_grad_(!rule.freeze);
      if (rule.freeze) continue;
      const double decay = entry.decay ? options.weight_decay : 0.0;
      Segment* last = state.segments.empty() ? nullptr : &state.segments.back();
      const bool adjacent = last && i > 0 && part.weights->views()[i - 1].requires_grad();
      if (adjacent && last->lr_scale == rule.lr_scale && last->decay == decay) {
        last->count = entry.offset + entry.num_elements() - last->offset;
      } else {
        state.segments.push_back({entry.offset, entry.num_elements(), rule.lr_scale, decay});
      }
    }
    if (!state.segments.empty()) {
      part.weights->ensure_grad();
      state.m = at::zeros_like(part.master);
      state.v = at::zeros_like(part.master);
    }
    parts_.push_back(std::move(state));
  }
}

void Optimizer::release() {
  for (PartState& state : parts_) {
    state.part.weights->set_requires_grad(false);
    state.part.weights->grad = at::Tensor();
  }
}

std::vector<double> Optimizer::part_norms() const {
  std::vector<at::Tensor> squares;
  for (const PartState& state : parts_) {
    const at::Tensor& grad = state.part.weights->grad;
    squares.push_back(state.m.defined()
                          ? at::linalg_vector_norm(grad).to(at::kDouble)
                          : at::zeros({}, state.part.master.options().dtype(at::kDouble)));
  }
  const at::Tensor norms = at::stack(squares).cpu();
  const double* values = norms.const_data_ptr<double>();
  return {values, values + norms.numel()};
}

void Optimizer::step(double lr, const std::vector<double>& grad_scale) {
  at::NoGradGuard no_grad;
  ++num_updates_;
  for (size_t p = 0; p < parts_.size(); ++p) {
    PartState& state = parts_[p];
    if (!state.m.defined()) continue;
    Weights& weights = *state.part.weights;
    const bool has_copy = !state.part.master.is_same(weights.flat);
    for (const Segment& s : state.segments) {
      auto range = [&](const at::Tensor& flat) { return flat.narrow(0, s.offset, s.count); };
      at::Tensor master = range(state.part.master), m = range(state.m), v = range(state.v);
      AdamW options{lr * s.lr_scale, options_.beta1, options_.beta2, options_.eps,
                    s.decay,         grad_scale[p],  num_updates_};
      adamw_step(master, m, v, range(weights.grad), has_copy ? range(weights.flat) : at::Tensor{},
                 options);
    }
  }
  zero_grad();
}

void Optimizer::zero_grad() {
  for (PartState& state : parts_) {
    if (state.part.weights->grad.defined()) state.part.weights->grad.zero_();
  }
}

int64_t Optimizer::num_trained_elements() const {
  int64_t count = 0;
  for (const PartState& state : parts_) {
    for (const Segment& s : state.segments) count += s.count;
  }
  return count;
}

void Optimizer::save(StateWriter& out, const std::string& prefix) const {
  out.json("optimizer", {{"updates", num_updates_}});
  for (const PartState& state : parts_) {
    if (!state.m.defined()) continue;
    const Layout& layout = state.part.weights->layout();
    out.tensor(prefix + layout.name, "m", layout, state.m);
    out.tensor(prefix + layout.name, "v", layout, state.v);
  }
}

void Optimizer::load(StateReader& in, const std::string& prefix) {
  num_updates_ = in.json("optimizer").at("updates").get<int64_t>();
  for (PartState& state : parts_) {
    if (!state.m.defined()) continue;
    const Layout& layout = state.part.weights->layout();
    in.tensor(prefix + layout.name, "m", layout, state.m);
    in.tensor(prefix + layout.name, "v", layout, state.v);
  }
}

}  // namespace sala
