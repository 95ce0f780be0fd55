// Everything that changes from step to step lies on the device, so that one captured step is all.
#include "model/generation/greedy.h"

#include "model/forward.h"

namespace sala {

namespace {

constexpr int64_t kPlainSteps = 2;  // before one is captured

}  // namespace

Greedy::Greedy(const Model& model, Lender& weights, DecodeCache& cache,
               const GreedyOptions& options)
    : model_(model),
      weights_(weights),
      cache_(cache),
      options_(options),
      decoder_(model, weights, cache, options.prefill_chunk) {
  const auto index = at::TensorOptions(cache.shape.device).dtype(at::kLong);
  ids_ = at::zeros({cache.num_sequences(), options.max_new_tokens}, index);
  next_ = at::zeros({cache.num_sequences()}, index);
  place_ = at::zeros({1}, index);
}

at::Tensor Greedy::best(const at::Tensor& hidden) {
  return logits(model_, weights_, hidden).argmax(1);
}

void Greedy::keep(const at::Tensor& ids) {
  next_.copy_(ids);
  ids_.index_copy_(1, place_, next_.unsqueeze(1));
  place_.add_(1);
}

void Greedy::queue_step() {
  const at::NoGradGuard no_grad;
  keep(best(decoder_.step(next_)));
}

void Greedy::begin(const at::Tensor& ids) {
  TORCH_CHECK(count_ == 0, "greedy decoding: expected to begin once");
  keep(ids);
  count_ = 1;
}

void Greedy::prefill(const std::vector<std::vector<int64_t>>& prompts) {
  const at::NoGradGuard no_grad;
  begin(best(decoder_.prefill(prompts)));
}

void Greedy::step() {
  TORCH_CHECK(count_ > 0 && count_ < options_.max_new_tokens,
              "greedy decoding: expected a step after a prefill and up to ",
              options_.max_new_tokens, " ids, got one after ", count_);
  if (!options_.graph || !cache_.steps_on_device(model_.config()) || count_ <= kPlainSteps) {
    queue_step();
  } else if (!graph_.is_captured()) {
    graph_.capture(cache_.shape.device, [&] { queue_step(); });  // counts on the host
    graph_.replay();
  } else {
    cache_.lengths.add_one_on_host();
    graph_.replay();
  }
  ++count_;
}

}  // namespace sala
