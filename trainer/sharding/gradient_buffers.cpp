// Which buffer takes which part's gradient.
#include "trainer/sharding/gradient_buffers.h"

namespace sala {

GradientBuffers::GradientBuffers(std::vector<Cut> cuts, const Pool& pool, at::TensorOptions options)
    : cuts_(std::move(cuts)), pool_(pool), options_(options) {
  for (size_t c = 0; c < pool_.classes.size(); ++c) {
    for (int64_t i = 0; i < pool_.classes[c].num_buffers; ++i) {
      add(static_cast<int64_t>(c), pool_.classes[c].num_elements, /*temporary=*/false);
    }
  }
}

GradientBuffers::Buffer& GradientBuffers::add(int64_t size_class, int64_t num_elements,
                                              bool temporary) {
  buffers_.push_back(
      {at::empty({num_elements}, options_), size_class, temporary, -1, 0, Mark(options_.device())});
  return buffers_.back();
}

at::Tensor GradientBuffers::take(size_t part) {
  const int64_t num_elements = cuts_[part].padded();
  Buffer* best = nullptr;
  for (Buffer& buffer : buffers_) {
    if (buffer.part == static_cast<int64_t>(part)) return buffer.flat.narrow(0, 0, num_elements);
    if (buffer.part >= 0 || buffer.size_class != pool_.class_of[part]) continue;
    if (best == nullptr || buffer.freed < best->freed) best = &buffer;
  }
  if (best == nullptr) best = &add(pool_.class_of[part], num_elements, /*temporary=*/true);
  best->part = static_cast<int64_t>(part);
  best->free.wait();
  at::Tensor whole = best->flat.narrow(0, 0, num_elements);
  return whole.zero_();
}

void GradientBuffers::give_back(size_t part) {
  for (auto buffer = buffers_.begin(); buffer != buffers_.end(); ++buffer) {
    if (buffer->part != static_cast<int64_t>(part)) continue;
    buffer->free.record();
    buffer->freed = ++now_;
    buffer->part = -1;
    // Its memory goes back to the stream that made it; the collective has told the allocator that
    // another one reads it.
    if (buffer->temporary) buffers_.erase(buffer);
    return;
  }
}

void GradientBuffers::give_back_all() {
  for (Buffer& buffer : buffers_) {
    if (buffer.part < 0) continue;
    buffer.free.record();
    buffer.part = -1;
  }
  buffers_.remove_if([](const Buffer& buffer) { return buffer.temporary; });
}

int64_t GradientBuffers::num_bytes() const {
  int64_t sum = 0;
  for (const Buffer& buffer : buffers_) sum += static_cast<int64_t>(buffer.flat.nbytes());
  return sum;
}

}  // namespace sala
