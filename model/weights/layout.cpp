// Layouts and weights: offsets, views, lookup by suffix.
#include "model/weights/layout.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <functional>
#include <numeric>

namespace sala {
namespace {

constexpr int64_t kAlignment = 64;  // elements; 128 bytes in bf16

int64_t aligned(int64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

void add_entry(Layout& layout, std::string name, std::vector<int64_t> shape, bool decay,
               Init init) {
  TORCH_CHECK(layout.find(name) == nullptr, "layout ", layout.name, ": expected each tensor once, ",
              name, " came twice");
  for (int64_t size : shape) {
    TORCH_CHECK(size > 0, "layout ", layout.name, ": expected positive sizes for ", name, ", got ",
                size);
  }
  Entry entry{std::move(name), std::move(shape), layout.num_elements, decay, init};
  layout.num_elements += entry.num_elements();
  layout.entries.push_back(std::move(entry));
}

// Whether `name` is `suffix` or ends in "." and `suffix`.
bool ends_in(std::string_view name, std::string_view suffix) {
  if (!name.ends_with(suffix)) return false;
  return name.size() == suffix.size() || name[name.size() - suffix.size() - 1] == '.';
}

}  // namespace

int64_t Entry::num_elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

void Layout::add(std::string entry_name, std::vector<int64_t> shape, bool decay, Init init) {
  add_entry(*this, std::move(entry_name), std::move(shape), decay, init);
  num_elements = aligned(num_elements);
}

void Layout::add_group(const std::vector<Named>& group, bool decay) {
  for (const Named& member : group) {
    if (!member.name.empty()) add_entry(*this, member.name, member.shape, decay, member.init);
  }
  num_elements = aligned(num_elements);
}

const Entry* Layout::find(std::string_view entry_name) const {
  for (const Entry& entry : entries) {
    if (entry.name == entry_name) return &entry;
  }
  return nullptr;
}

int64_t Layout::index(std::string_view suffix) const {
  int64_t found = -1;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!ends_in(entries[i].name, suffix)) continue;
    TORCH_CHECK(found < 0, "layout ", name, ": several tensors end in ", std::string(suffix),
                ", ask for more of the name");
    found = static_cast<int64_t>(i);
  }
  return found;
}

at::Tensor group_view(const Layout& layout, const at::Tensor& flat, int64_t first, int64_t last) {
  TORCH_CHECK(0 <= first && first <= last && last < static_cast<int64_t>(layout.entries.size()),
              "layout ", layout.name, ": no entries ", first, " to ", last);
  const Entry& begin = layout.entries[first];
  int64_t end = begin.offset, rows = 0;
  for (int64_t i = first; i <= last; ++i) {
    const Entry& entry = layout.entries[i];
    TORCH_CHECK(entry.offset == end, "layout ", layout.name, ": ", entry.name,
                " does not follow its neighbour without a gap");
    end += entry.num_elements();
    rows += entry.shape[0];
  }
  std::vector<int64_t> shape = begin.shape;
  shape[0] = rows;
  return flat.narrow(0, begin.offset, end - begin.offset).view(shape);
}

Weights::Weights(LayoutPtr layout, at::Tensor buffer)
    : flat(std::move(buffer)), layout_(std::move(layout)) {
  at::NoGradGuard no_grad;
  for (const Entry& entry : layout_->entries) {
    views_.push_back(flat.narrow(0, entry.offset, entry.num_elements()).view(entry.shape));
  }
}

Weights::Weights(LayoutPtr layout, at::ScalarType dtype, at::Device device)
    : Weights(layout,
              at::zeros({layout->num_elements}, at::TensorOptions().dtype(dtype).device(device))) {}

Weights::Weights(Layout layout, at::ScalarType dtype, at::Device device)
    : Weights(std::make_shared<const Layout>(std::move(layout)), dtype, device) {}

at::Tensor Weights::find(std::string_view suffix) const {
  const int64_t index = layout_->index(suffix);
  return index < 0 ? at::Tensor() : views_[index];
}

const at::Tensor& Weights::operator[](std::string_view suffix) const {
  const int64_t index = layout_->index(suffix);
  TORCH_CHECK(index >= 0, "layout ", layout_->name, ": expected exactly one tensor that ends in ",
              std::string(suffix), ", got none");
  return views_[index];
}

at::Tensor Weights::group(std::string_view first, std::string_view last) const {
  return group_view(*layout_, flat, layout_->index(first), layout_->index(last));
}

}  // namespace sala
