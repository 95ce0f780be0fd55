// Layouts and weights: offsets, views, lookup by suffix, gradient sums.
#include "model/layout.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <functional>
#include <limits>
#include <numeric>

namespace sala {
namespace {

constexpr int64_t kAlignment = 64;  // elements; 128 bytes in bf16
constexpr size_t kAmbiguous = std::numeric_limits<size_t>::max();

// Calls `use` with the name and with what follows each of its dots.
void for_each_suffix(std::string_view name, const std::function<void(std::string_view)>& use) {
  use(name);
  for (size_t dot = name.find('.'); dot != name.npos; dot = name.find('.', dot + 1)) {
    use(name.substr(dot + 1));
  }
}

}  // namespace

int64_t Entry::num_elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

void Layout::add(std::string entry_name, std::vector<int64_t> shape, bool decay, Init init) {
  TORCH_CHECK(find(entry_name) == nullptr, "layout ", name, ": expected each tensor once, ",
              entry_name, " came twice");
  for (int64_t size : shape) {
    TORCH_CHECK(size > 0, "layout ", name, ": expected positive sizes for ", entry_name, ", got ",
                size);
  }
  Entry entry{std::move(entry_name), std::move(shape), num_elements, decay, init};
  const int64_t end = entry.offset + entry.num_elements();
  num_elements = (end + kAlignment - 1) / kAlignment * kAlignment;
  entries.push_back(std::move(entry));
}

const Entry* Layout::find(std::string_view entry_name) const {
  for (const Entry& entry : entries) {
    if (entry.name == entry_name) return &entry;
  }
  return nullptr;
}

Weights::Weights(Layout layout, at::ScalarType dtype, at::Device device)
    : layout_(std::move(layout)) {
  at::NoGradGuard no_grad;
  flat = at::zeros({layout_.num_elements}, at::TensorOptions().dtype(dtype).device(device));
  for (const Entry& entry : layout_.entries) {
    for_each_suffix(entry.name, [&](std::string_view suffix) {
      const auto [at, inserted] = index_.emplace(std::string(suffix), views_.size());
      if (!inserted) at->second = kAmbiguous;
    });
    views_.push_back(flat.narrow(0, entry.offset, entry.num_elements()).view(entry.shape));
  }
}

at::Tensor Weights::find(std::string_view suffix) const {
  const auto at = index_.find(suffix);
  if (at == index_.end()) return {};
  TORCH_CHECK(at->second != kAmbiguous, "layout ", layout_.name, ": several tensors end in ",
              std::string(suffix), ", ask for more of the name");
  return views_[at->second];
}

const at::Tensor& Weights::operator[](std::string_view suffix) const {
  const auto at = index_.find(suffix);
  TORCH_CHECK(at != index_.end() && at->second != kAmbiguous, "layout ", layout_.name,
              ": expected exactly one tensor that ends in ", std::string(suffix), ", got ",
              at == index_.end() ? "none" : "several");
  return views_[at->second];
}

void Weights::ensure_grad() {
  if (grad.defined()) return;
  const at::ScalarType dtype = flat.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  grad = at::zeros({layout_.num_elements}, flat.options().dtype(dtype).requires_grad(false));
}

void Weights::accumulate_grad(size_t index, const at::Tensor& g) {
  TORCH_CHECK(index < layout_.entries.size(), "layout ", layout_.name, ": expected an entry below ",
              layout_.entries.size(), ", got ", index);
  const Entry& entry = layout_.entries[index];
  TORCH_CHECK(g.sizes() == at::IntArrayRef(entry.shape), entry.name, ": expected a gradient of ",
              at::IntArrayRef(entry.shape), ", got ", g.sizes());
  at::NoGradGuard no_grad;
  ensure_grad();
  grad.narrow(0, entry.offset, entry.num_elements()).view(entry.shape).add_(g);
}

void Weights::set_requires_grad(bool on) {
  for (at::Tensor& view : views_) view.set_requires_grad(on);
}

}  // namespace sala
