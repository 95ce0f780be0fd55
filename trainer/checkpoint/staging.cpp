// Blocks filled one after the other, without gaps.
#include "trainer/checkpoint/staging.h"

#include <algorithm>

namespace sala {
namespace {

constexpr int64_t kBlockElements = int64_t{16} << 20;

}  // namespace

int64_t Staging::num_lacking(int64_t num_elements) const {
  const int64_t needed = (num_elements + kBlockElements - 1) / kBlockElements;
  return std::max<int64_t>(0, needed - static_cast<int64_t>(blocks_.size()));
}

std::vector<at::Tensor> Staging::make_blocks(int64_t count) const {
  const auto options = at::TensorOptions(at::kFloat).pinned_memory(page_locked_);
  std::vector<at::Tensor> blocks;
  while (count-- > 0) blocks.push_back(at::empty({kBlockElements}, options));
  return blocks;
}

void Staging::take(std::vector<at::Tensor> blocks) {
  for (at::Tensor& block : blocks) blocks_.push_back(std::move(block));
}

Staging::Extent Staging::add(const at::Tensor& values) {
  const at::NoGradGuard no_grad;
  const at::Tensor flat = values.view({-1});
  const Extent extent{used_, flat.numel()};
  for (int64_t from = 0; from < extent.count;) {
    const auto block = static_cast<size_t>(used_ / kBlockElements);
    if (block == blocks_.size()) take(make_blocks(1));
    const int64_t at = used_ % kBlockElements;
    const int64_t count = std::min(extent.count - from, kBlockElements - at);
    blocks_[block].narrow(0, at, count).copy_(flat.narrow(0, from, count), /*non_blocking=*/true);
    from += count;
    used_ += count;
  }
  return extent;
}

std::span<const float> Staging::view(const Extent& extent, int64_t from, int64_t most) const {
  const int64_t first = extent.begin + from, at = first % kBlockElements;
  const int64_t count = std::min({most, extent.count - from, kBlockElements - at});
  const at::Tensor& block = blocks_.at(static_cast<size_t>(first / kBlockElements));
  return {block.const_data_ptr<float>() + at, static_cast<size_t>(count)};
}

int64_t Staging::num_bytes() const {
  return static_cast<int64_t>(blocks_.size() * sizeof(float)) * kBlockElements;
}

}  // namespace sala
