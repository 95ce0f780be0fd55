// Which buffer takes which part, and the events that order its users.
#include "trainer/sharding/gather_buffers.h"

#include <tuple>

namespace sala {

GatherBuffers::GatherBuffers(std::vector<Part> parts, const Pool& pool, Comm& comm,
                             const SideStream& stream)
    : parts_(std::move(parts)), pool_(pool), comm_(comm), stream_(stream) {
  if (parts_.empty()) return;
  options_ = parts_[0].source.options();
  for (size_t c = 0; c < pool_.classes.size(); ++c) {
    for (int64_t i = 0; i < pool_.classes[c].num_buffers; ++i) {
      add(static_cast<int64_t>(c), pool_.classes[c].num_elements, /*temporary=*/false);
    }
  }
  for (size_t part = 0; part < parts_.size(); ++part) {
    gathered_.emplace_back(options_.device());
    written_.emplace_back(options_.device()).record();
  }
}

GatherBuffers::Buffer& GatherBuffers::add(int64_t size_class, int64_t num_elements,
                                          bool temporary) {
  Buffer& buffer = buffers_.emplace_back(options_.device());
  buffer.flat = at::empty({num_elements}, options_);
  buffer.size_class = size_class;
  buffer.temporary = temporary;
  buffer.free.record();  // the memory may have been another tensor's until here
  return buffer;
}

GatherBuffers::Buffer* GatherBuffers::holder(size_t part) {
  for (Buffer& buffer : buffers_) {
    if (buffer.part == static_cast<int64_t>(part)) return &buffer;
  }
  return nullptr;
}

// Of those that nobody uses: one that nobody will soon, if possible, and of these the one that
// holds nothing or whose last use is the longest ago.
GatherBuffers::Buffer* GatherBuffers::free_buffer(size_t part, bool take_hinted) {
  const auto rank = [](const Buffer& b) {
    return std::make_tuple(b.hinted, b.part >= 0, b.last_use);
  };
  Buffer* best = nullptr;
  for (Buffer& buffer : buffers_) {
    if (buffer.size_class != pool_.class_of[part] || buffer.temporary) continue;
    if (buffer.num_users > 0 || (buffer.hinted && !take_hinted)) continue;
    if (best == nullptr || rank(buffer) < rank(*best)) best = &buffer;
  }
  return best;
}

void GatherBuffers::gather(size_t part, Buffer& buffer) {
  const Part& p = parts_[part];
  at::Tensor whole = buffer.flat.narrow(0, 0, p.cut.padded());
  stream_.run([&] {
    written_[part].wait();
    buffer.free.wait();
    comm_.all_gather(whole, p.source);
    gathered_[part].record();
  });
  buffer.part = static_cast<int64_t>(part);
  auto view = buffer.views.find(part);
  if (view == buffer.views.end()) {
    const at::Tensor flat = buffer.flat.narrow(0, 0, p.cut.num_elements);
    view = buffer.views.emplace(part, Weights(p.layout, flat)).first;
  }
  buffer.now = &view->second;
}

GatherBuffers::Buffer& GatherBuffers::take(size_t part) {
  Buffer* buffer = holder(part);
  if (buffer == nullptr) {
    buffer = free_buffer(part, /*take_hinted=*/true);
    if (buffer == nullptr) {
      buffer = &add(pool_.class_of[part], parts_[part].cut.padded(), /*temporary=*/true);
    }
    gather(part, *buffer);
  }
  gathered_[part].wait();
  buffer->hinted = false;
  ++buffer->num_users;
  buffer->last_use = ++now_;
  return *buffer;
}

const Weights& GatherBuffers::weights(const Buffer& buffer) { return *buffer.now; }

void GatherBuffers::give_back(Buffer& buffer) {
  if (--buffer.num_users > 0) return;
  buffer.free.record();
  if (buffer.temporary) buffers_.remove_if([&](const Buffer& b) { return &b == &buffer; });
}

void GatherBuffers::hint(size_t part) {
  Buffer* buffer = holder(part);
  if (buffer == nullptr) {
    buffer = free_buffer(part, /*take_hinted=*/false);
    if (buffer == nullptr) return;
    gather(part, *buffer);
  }
  buffer->hinted = buffer->num_users == 0;
  buffer->last_use = ++now_;
}

void GatherBuffers::source_changed(size_t part) {
  written_[part].record();
  for (Buffer& buffer : buffers_) {
    if (buffer.part != static_cast<int64_t>(part)) continue;
    buffer.part = -1;
    buffer.hinted = false;
  }
}

int64_t GatherBuffers::num_bytes() const {
  int64_t sum = 0;
  for (const Buffer& buffer : buffers_) sum += static_cast<int64_t>(buffer.flat.nbytes());
  return sum;
}

}  // namespace sala
