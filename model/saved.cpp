// A short list, searched by name.
#include "model/saved.h"

#include <algorithm>

namespace sala {

void Saved::keep(const char* name, at::Tensor tensor, Cost cost) {
  for (Kept& kept : kept_) {
    if (std::string_view(kept.name) != name) continue;
    kept.tensor = std::move(tensor);
    return;
  }
  kept_.push_back({name, std::move(tensor), cost});
}

at::Tensor Saved::find(std::string_view name) const {
  for (const Kept& kept : kept_) {
    if (kept.name == name) return kept.tensor;
  }
  return {};
}

const at::Tensor& Saved::get(std::string_view name) const {
  for (const Kept& kept : kept_) {
    if (kept.name == name && kept.tensor.defined()) return kept.tensor;
  }
  TORCH_CHECK(false, "the forward pass kept no ", std::string(name),
              trimmed_ ? " (it was forgotten, and the pass was not run again)" : "");
}

at::Tensor Saved::take(std::string_view name) {
  at::Tensor tensor = get(name);
  std::erase_if(kept_, [&](const Kept& kept) { return kept.name == name; });
  return tensor;
}

void Saved::trim(Recompute level) {
  if (level == Recompute::kNone) return;
  const size_t before = kept_.size();
  std::erase_if(kept_, [&](const Kept& kept) {
    return kept.cost == Cost::kElementwise ||
           (kept.cost == Cost::kProduct && level == Recompute::kFull);
  });
  trimmed_ = trimmed_ || kept_.size() < before;
}

int64_t Saved::num_bytes() const {
  int64_t bytes = 0;
  for (const Kept& kept : kept_) bytes += kept.tensor.defined() ? kept.tensor.nbytes() : 0;
  return bytes;
}

}  // namespace sala
