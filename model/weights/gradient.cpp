// Sums of weight gradients by entry and by group.
#include "model/weights/gradient.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

namespace sala {

Gradient::Gradient(LayoutPtr layout, at::Tensor buffer, std::vector<bool> trains)
    : flat(std::move(buffer)), layout_(std::move(layout)), trains_(std::move(trains)) {
  TORCH_CHECK(trains_.size() == layout_->entries.size(), "layout ", layout_->name, ": expected ",
              layout_->entries.size(), " flags, got ", trains_.size());
}

bool Gradient::wants_any() const {
  return std::find(trains_.begin(), trains_.end(), true) != trains_.end();
}

bool Gradient::wants(std::string_view suffix) const {
  const int64_t index = layout_ ? layout_->index(suffix) : -1;
  return index >= 0 && trains_[index];
}

bool Gradient::wants_any(std::string_view first, std::string_view last) const {
  return !ranges(first, last).empty();
}

at::Tensor Gradient::view(std::string_view suffix) const {
  if (!wants(suffix)) return {};
  const int64_t index = layout_->index(suffix);
  return group_view(*layout_, flat, index, index);
}

void Gradient::add(std::string_view suffix, const at::Tensor& g) {
  const at::NoGradGuard no_grad;
  at::Tensor sum = view(suffix);
  if (!sum.defined()) return;
  TORCH_CHECK(g.sizes() == sum.sizes(), std::string(suffix), ": expected a gradient of ",
              sum.sizes(), ", got ", g.sizes());
  sum.add_(g);
}

std::vector<Gradient::Range> Gradient::ranges(std::string_view first, std::string_view last) const {
  std::vector<Range> found;
  const int64_t begin = layout_ ? layout_->index(first) : -1;
  if (begin < 0) return found;
  int64_t column = 0;
  bool follows = false;  // the entry before trains and is in `found`
  for (int64_t i = begin, end = layout_->index(last); i <= end; ++i) {
    const int64_t width = layout_->entries[i].shape[0];
    if (trains_[i] && follows) {
      found.back().last = i;
      found.back().width += width;
    } else if (trains_[i]) {
      found.push_back({i, i, column, width});
    }
    follows = trains_[i];
    column += width;
  }
  return found;
}

void Gradient::add_product(std::string_view first, std::string_view last, const at::Tensor& dy,
                           const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  for (const Range& range : ranges(first, last)) {
    at::Tensor sum = group_view(*layout_, flat, range.first, range.last);
    const at::Tensor g = dy.narrow(1, range.column, range.width).t();
    if (x.scalar_type() == sum.scalar_type()) {
      sum.addmm_(g, x);
    } else if (x.is_cuda()) {
      at::addmm_out(sum, sum, g, x, sum.scalar_type());
    } else {
      sum.addmm_(g.to(sum.scalar_type()), x.to(sum.scalar_type()));
    }
  }
}

void Gradient::add_product(std::string_view first, std::string_view last, const Fp8Rows& dy_columns,
                           const Fp8Rows& x_columns) {
  const at::NoGradGuard no_grad;
  for (const Range& range : ranges(first, last)) {
    const Fp8Rows g{dy_columns.values.narrow(0, range.column, range.width),
                    dy_columns.scale.narrow(0, range.column, range.width)};
    fp8_add_product(group_view(*layout_, flat, range.first, range.last), g, x_columns);
  }
}

void Gradient::add_bias(std::string_view first, std::string_view last, const at::Tensor& dy) {
  const at::NoGradGuard no_grad;
  for (const Range& range : ranges(first, last)) {
    at::Tensor sum = group_view(*layout_, flat, range.first, range.last);
    sum.add_(dy.narrow(1, range.column, range.width).sum(0, false, sum.scalar_type()));
  }
}

}  // namespace sala
