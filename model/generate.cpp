// Prefill in chunks, then one token at a time.
#include "model/generate.h"

#include <algorithm>

#include "model/forward.h"

namespace sala {

namespace {

int64_t next_id(const Model& model, Lender& weights, const at::Tensor& hidden) {
  return logits(model, weights, hidden.narrow(0, hidden.size(0) - 1, 1)).argmax().item<int64_t>();
}

}  // namespace

std::vector<int64_t> generate(const Model& model, Lender& weights,
                              const std::vector<int64_t>& prompt, const GenerateOptions& options) {
  TORCH_CHECK(!prompt.empty(), "generate needs a prompt of at least one token");
  DecodeState state;
  state.planned_tokens = static_cast<int64_t>(prompt.size());
  auto feed = [&](const std::vector<int64_t>& ids) {
    Batch batch = single_document(ids, state.num_tokens, options.device);
    return hidden(model, weights, model.env(batch, options.sparse, &state));
  };
  at::Tensor last;
  const int64_t length = static_cast<int64_t>(prompt.size());
  for (int64_t begin = 0; begin < length; begin += options.prefill_chunk) {
    const int64_t end = std::min(length, begin + options.prefill_chunk);
    last = feed({prompt.begin() + begin, prompt.begin() + end});
  }
  std::vector<int64_t> out;
  while (static_cast<int64_t>(out.size()) < options.max_new_tokens) {
    out.push_back(next_id(model, weights, last));
    const auto& stop = options.stop_ids;
    if (std::find(stop.begin(), stop.end(), out.back()) != stop.end()) break;
    if (static_cast<int64_t>(out.size()) < options.max_new_tokens) last = feed({out.back()});
  }
  return out;
}

}  // namespace sala
