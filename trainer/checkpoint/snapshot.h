// This rank's share of a run's state as it was when the stages handed it over: JSON, and elements
// in host memory, or on their way there.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "trainer/checkpoint/checkpoints.h"
#include "trainer/checkpoint/staging.h"

namespace sala {

// What this rank keeps of one tensor: elements [begin, begin + values.count) of its part.
struct SnapshotTensor {
  std::string part, field;
  std::string group;  // of what is frozen: what goes into one file; empty for all else
  int64_t begin = 0;
  Staging::Extent values;
  int64_t num_elements = 0;  // of the part, on all ranks together
  std::string fingerprint;   // of a whole tensor as this rank holds it; empty for ranges
};

// Of n elements that every rank holds, those that `rank` keeps: [first, second).
inline std::pair<int64_t, int64_t> kept_range(int rank, int size, int64_t n) {
  return {n * rank / size, n * (rank + 1) / size};
}

class Snapshot final : public StateWriter {
 public:
  // `staging` is cleared, and belongs to this snapshot until there is another. Tensors lie on
  // `device` or on the CPU. Copies go on `side`, the same for all snapshots: LibTorch hands its
  // streams out in turn, and a new one each time would some day be that of the gathers.
  Snapshot(int rank, int size, at::Device device, Staging& staging, const SideStream& side);

  // These never throw: the first error is kept for check(), because the caller's ranks may meet in
  // collectives between two tensors, and none may drop out alone.
  void json(const std::string& name, const nlohmann::json& value) override;
  void tensor(const std::string& part, const std::string& field, const Layout& layout,
              int64_t begin, const at::Tensor& range) override;
  void tensor(const std::string& part, const std::string& field, const Layout& layout,
              const at::Tensor& full) override;
  void frozen(const std::string& part, const std::string& field, const Layout& layout,
              const at::Tensor& full) override;
  void frozen(const std::string& group, const std::string& part, const std::string& field,
              const Layout& layout, int64_t begin, const at::Tensor& range) override;
  void complete_after(std::shared_future<void> work) override {
    if (work.valid()) awaited_.push_back(std::move(work));
  }
  std::shared_ptr<const Mark> copied() const override { return copied_; }
  // Waits for the copies, and lets go of what was copied. Of one thread at a time.
  void finish_copies();
  void check() const;  // throws the first error

  const nlohmann::json& state() const { return state_; }
  const std::map<std::string, Layout>& layouts() const { return layouts_; }
  const std::vector<SnapshotTensor>& tensors() const { return tensors_; }
  const Staging& staging() const { return staging_; }
  const std::vector<std::shared_future<void>>& awaited() const { return awaited_; }

 private:
  template <class Work>
  void guarded(const Work& work);
  SnapshotTensor& begin_tensor(const std::string& part, const std::string& field,
                               const Layout& layout, const at::Tensor& values, int64_t begin,
                               int64_t end);
  Staging::Extent take(const at::Tensor& values);

  const int rank_, size_;
  Staging& staging_;
  const SideStream& side_;
  const std::shared_ptr<Mark> copied_;
  std::vector<at::Tensor> held_;  // until they are copied
  nlohmann::json state_ = nlohmann::json::object();
  std::map<std::string, Layout> layouts_;  // by part
  std::vector<SnapshotTensor> tensors_;    // in the order of the calls
  int64_t num_whole_frozen_ = 0;
  std::vector<std::shared_future<void>> awaited_;
  std::string error_;
};

// Counts what a snapshot would hold on this rank, and copies nothing.
class SnapshotSize final : public StateWriter {
 public:
  SnapshotSize(int rank, int size) : rank_(rank), size_(size) {}
  int64_t num_elements() const { return num_elements_; }

  void json(const std::string&, const nlohmann::json&) override {}
  void tensor(const std::string&, const std::string&, const Layout&, int64_t,
              const at::Tensor& range) override {
    num_elements_ += range.numel();
  }
  void tensor(const std::string&, const std::string&, const Layout&,
              const at::Tensor& full) override {
    const auto [begin, end] = kept_range(rank_, size_, full.numel());
    num_elements_ += end - begin;
  }
  void frozen(const std::string&, const std::string&, const std::string&, const Layout&, int64_t,
              const at::Tensor& range) override {
    num_elements_ += range.numel();
  }
  void frozen(const std::string&, const std::string&, const Layout&,
              const at::Tensor& full) override {
    if (num_whole_frozen_++ % size_ == rank_) num_elements_ += full.numel();
  }

 private:
  const int rank_, size_;
  int64_t num_elements_ = 0, num_whole_frozen_ = 0;
};

}  // namespace sala
