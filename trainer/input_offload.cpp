// Blocks of host memory, and who waits for which copy.
#include "trainer/input_offload.h"

#include <algorithm>

namespace sala {
namespace {

// LibTorch rounds page-locked memory up to a power of two: in pieces nothing is lost.
constexpr int64_t kBlockBytes = int64_t{64} << 20;

at::Tensor bytes_of(const at::Tensor& x) { return x.view({-1}).view(at::kByte); }

// Calls copy(bytes of x, bytes of the block) piece by piece.
template <typename Copy>
void for_blocks(const at::Tensor& x, const std::vector<at::Tensor>& blocks, Copy&& copy) {
  const at::Tensor bytes = bytes_of(x);
  for (int64_t from = 0; from < bytes.numel(); from += kBlockBytes) {
    const int64_t count = std::min(kBlockBytes, bytes.numel() - from);
    copy(bytes.narrow(0, from, count),
         blocks[static_cast<size_t>(from / kBlockBytes)].narrow(0, 0, count));
  }
}

}  // namespace

InputOffload::InputOffload(at::Device device) : device_(device), side_(device), arrived_(device) {}

InputOffload::Slot& InputOffload::slot(size_t u) {
  if (u >= slots_.size()) slots_.resize(u + 1);
  return slots_[u];
}

void InputOffload::let_go() {
  if (!leaving_.defined()) return;
  arrived_.wait();  // only then may its memory be used for something else
  leaving_.reset();
}

void InputOffload::put(size_t u, const at::Tensor& x) {
  let_go();
  if (!x.defined()) return;
  Slot& to = slot(u);
  const auto options = at::TensorOptions(at::kByte).pinned_memory(!device_.is_cpu());
  while (static_cast<int64_t>(to.blocks.size()) * kBlockBytes < static_cast<int64_t>(x.nbytes())) {
    to.blocks.push_back(at::empty({kBlockBytes}, options));
  }
  to.like = at::empty_like(x, x.options().device(at::kMeta));
  side_.run_after_current([&] {
    for_blocks(x, to.blocks, [](const at::Tensor& from, const at::Tensor& block) {
      at::Tensor(block).copy_(from, /*non_blocking=*/true);
    });
    arrived_.record();
  });
  leaving_ = x;
}

void InputOffload::hint(size_t u) {
  let_go();
  Slot& from = slot(u);
  if (!from.like.defined()) return;
  from.on_device = at::empty_like(from.like, from.like.options().device(device_));
  from.like.reset();
  // Its memory may be that of something which the current stream still works on.
  side_.run_after_current([&] {
    for_blocks(from.on_device, from.blocks, [](const at::Tensor& to, const at::Tensor& block) {
      at::Tensor(to).copy_(block, /*non_blocking=*/true);
    });
    arrived_.record();
  });
}

at::Tensor InputOffload::take(size_t u) {
  arrived_.wait();
  return std::move(slot(u).on_device);
}

int64_t InputOffload::num_host_bytes() const {
  int64_t blocks = 0;
  for (const Slot& slot : slots_) blocks += static_cast<int64_t>(slot.blocks.size());
  return blocks * kBlockBytes;
}

}  // namespace sala
