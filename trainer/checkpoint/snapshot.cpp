// Checks of what stages hand over, and who keeps what of it.
#include "trainer/checkpoint/snapshot.h"

#include <algorithm>
#include <stdexcept>

#include "trainer/checkpoint/layout_map.h"
#include "trainer/ranks/tensor_fingerprint.h"

namespace sala {

Snapshot::Snapshot(int rank, int size, at::Device device, Staging& staging, const SideStream& side)
    : rank_(rank),
      size_(size),
      staging_(staging),
      side_(side),
      copied_(std::make_shared<Mark>(device)) {
  staging_.clear();
}

template <class Work>
void Snapshot::guarded(const Work& work) {
  if (!error_.empty()) return;
  try {
    work();
  } catch (const c10::Error& error) {
    error_ = error.what_without_backtrace();
  } catch (const std::exception& error) {
    error_ = error.what();
  }
}

void Snapshot::json(const std::string& name, const nlohmann::json& value) {
  guarded([&] {
    TORCH_CHECK(!state_.contains(name), "state ", name, " was saved twice");
    state_[name] = value;
  });
}

// `values` are elements [begin, end) of the part.
SnapshotTensor& Snapshot::begin_tensor(const std::string& part, const std::string& field,
                                       const Layout& layout, const at::Tensor& values,
                                       int64_t begin, int64_t end) {
  TORCH_CHECK(values.defined() && values.is_contiguous() && values.numel() == end - begin &&
                  0 <= begin && end <= layout.num_elements &&
                  at::isFloatingType(values.scalar_type()) && values.scalar_type() != at::kDouble,
              "state ", part, "/", field, ": expected contiguous fp32 elements of [0, ",
              layout.num_elements, "), got [", begin, ", ", end, ") in ",
              values.defined() ? values.numel() : 0, " of ", values.toString());
  const bool twice = std::any_of(tensors_.begin(), tensors_.end(), [&](const SnapshotTensor& t) {
    return t.part == part && t.field == field;
  });
  TORCH_CHECK(!twice, "state ", part, "/", field, " was saved twice");
  const auto [known, added] = layouts_.emplace(part, layout);
  TORCH_CHECK(added || same_places(layout, known->second), "state ", part, "/", field,
              ": another layout than before: ", layout_difference(layout, known->second));
  SnapshotTensor tensor;
  tensor.part = part;
  tensor.field = field;
  tensor.num_elements = layout.num_elements;
  tensors_.push_back(std::move(tensor));
  return tensors_.back();
}

Staging::Extent Snapshot::take(const at::Tensor& values) {
  Staging::Extent extent;
  side_.run_after_current([&] {
    extent = staging_.add(values);
    copied_->record();
  });
  held_.push_back(values);
  return extent;
}

void Snapshot::finish_copies() {
  copied_->wait_on_host();
  held_.clear();
}

void Snapshot::tensor(const std::string& part, const std::string& field, const Layout& layout,
                      int64_t begin, const at::Tensor& range) {
  guarded([&] {
    SnapshotTensor& tensor = begin_tensor(part, field, layout, range, begin, begin + range.numel());
    tensor.begin = begin;
    tensor.values = take(range);
  });
}

void Snapshot::tensor(const std::string& part, const std::string& field, const Layout& layout,
                      const at::Tensor& full) {
  guarded([&] {
    SnapshotTensor& tensor = begin_tensor(part, field, layout, full, 0, layout.num_elements);
    tensor.fingerprint = size_ > 1 ? tensor_fingerprint(full) : "";
    const auto [begin, end] = kept_range(rank_, size_, full.numel());
    tensor.begin = begin;
    tensor.values = take(full.view({-1}).narrow(0, begin, end - begin));
  });
}

void Snapshot::frozen(const std::string& group, const std::string& part, const std::string& field,
                      const Layout& layout, int64_t begin, const at::Tensor& range) {
  guarded([&] {
    tensor(part, field, layout, begin, range);
    if (error_.empty()) tensors_.back().group = group;
  });
}

// Dealt out whole, one rank each, so that the files do not depend on the number of ranks.
void Snapshot::frozen(const std::string& part, const std::string& field, const Layout& layout,
                      const at::Tensor& full) {
  const bool mine = num_whole_frozen_++ % size_ == rank_;
  guarded([&] {
    SnapshotTensor& tensor = begin_tensor(part, field, layout, full, 0, layout.num_elements);
    tensor.group = part + "." + field;
    tensor.fingerprint = size_ > 1 ? tensor_fingerprint(full) : "";
    if (mine) tensor.values = take(full);
  });
}

void Snapshot::check() const {
  if (!error_.empty()) throw std::runtime_error(error_);
}

}  // namespace sala
