// Prefill in chunks, then one token at a time.
#include "model/generate.h"

#include <algorithm>

namespace sala {

namespace {

int64_t next_id(const Model& model, const at::Tensor& hidden) {
  return model.logits(hidden.narrow(0, hidden.size(0) - 1, 1)).argmax().item<int64_t>();
}

}  // namespace

std::vector<int64_t> generate(const Model& model, const std::vector<int64_t>& prompt,
                              const GenerateOptions& options) {
  TORCH_CHECK(!prompt.empty(), "generate needs a prompt of at least one token");
  const at::Device device = model.parts().front().flat.device();
  DecodeState state;
  state.planned_tokens = static_cast<int64_t>(prompt.size());
  auto feed = [&](const std::vector<int64_t>& ids) {
    Batch batch = single_document(ids, state.num_tokens, device);
    return model.hidden(model.env(batch, options.sparse, &state));
  };
  at::Tensor hidden;
  const int64_t length = static_cast<int64_t>(prompt.size());
  for (int64_t begin = 0; begin < length; begin += options.prefill_chunk) {
    const int64_t end = std::min(length, begin + options.prefill_chunk);
    hidden = feed({prompt.begin() + begin, prompt.begin() + end});
  }
  std::vector<int64_t> out;
  while (static_cast<int64_t>(out.size()) < options.max_new_tokens) {
    out.push_back(next_id(model, hidden));
    const auto& stop = options.stop_ids;
    if (std::find(stop.begin(), stop.end(), out.back()) != stop.end()) break;
    if (static_cast<int64_t>(out.size()) < options.max_new_tokens) hidden = feed({out.back()});
  }
  return out;
}

}  // namespace sala
