// Weights for whoever runs units: the step, evaluation, generation, scoring. They are whole on this
// rank from lease() to the end of the lease; where they come from, and what becomes of them after,
// is the lender's business.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "model/weights/layout.h"

namespace sala {

// The weights of some parts, in the order that they were asked for. Given back when it ends.
class Lease {
 public:
  Lease() = default;
  explicit Lease(std::vector<const Weights*> weights, std::function<void()> give_back = {})
      : weights_(std::move(weights)), give_back_(std::move(give_back)) {}
  Lease(Lease&& other) noexcept
      : weights_(std::move(other.weights_)), give_back_(std::exchange(other.give_back_, {})) {}
  Lease& operator=(Lease&& other) noexcept {
    if (this != &other) {
      end();
      weights_ = std::move(other.weights_);
      give_back_ = std::exchange(other.give_back_, {});
    }
    return *this;
  }
  ~Lease() { end(); }

  size_t size() const { return weights_.size(); }
  const Weights& operator[](size_t i) const { return *weights_[i]; }

 private:
  void end() {
    if (give_back_) std::exchange(give_back_, {})();
  }

  std::vector<const Weights*> weights_;
  std::function<void()> give_back_;
};

class Lender {
 public:
  virtual ~Lender() = default;
  // Ordered with the current stream. Where weights are sharded this is a collective: every rank
  // leases the same parts in the same order.
  virtual Lease lease(std::span<const size_t> parts) = 0;
  // These parts will be leased soon. Never needed, returns at once.
  virtual void hint(std::span<const size_t> /*parts*/) {}

  Lease lease(size_t part) { return lease(std::span<const size_t>(&part, 1)); }
};

// All weights on this rank, for as long as it lives.
class HeldWeights : public Lender {
 public:
  HeldWeights(const std::vector<LayoutPtr>& layouts, at::ScalarType dtype, at::Device device) {
    for (const LayoutPtr& layout : layouts) parts_.emplace_back(layout, dtype, device);
  }
  explicit HeldWeights(std::vector<Weights> parts) : parts_(std::move(parts)) {}
  using Lender::lease;
  Lease lease(std::span<const size_t> parts) override {
    std::vector<const Weights*> weights;
    for (size_t part : parts) weights.push_back(&parts_[part]);
    return Lease(std::move(weights));
  }
  std::vector<Weights>& parts() { return parts_; }

 private:
  std::vector<Weights> parts_;
};

}  // namespace sala
