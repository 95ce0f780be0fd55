// Who holds which weights and gradients. The step asks for a unit's parts before it runs them and
// gives them back after; an implementation decides what that means. Here: every rank holds
// everything and gradients are summed over all ranks.
#pragma once

#include <vector>

#include "kernels/collectives.h"
#include "model/layout.h"

namespace sala {

class Sharding {
 public:
  virtual ~Sharding() = default;
  virtual void prefetch(size_t part) = 0;  // the part will be gathered soon; returns at once
  virtual void gather(size_t part) = 0;    // its weights are whole until release
  virtual void release(size_t part) = 0;
  virtual void reduce(size_t part) = 0;  // its gradient is complete on this rank: sum over ranks
  virtual void finish() = 0;  // all reductions are done when the current stream gets here
};

class Replicated : public Sharding {
 public:
  Replicated(std::vector<Weights*> parts, Comm& comm) : parts_(std::move(parts)), comm_(comm) {}
  void prefetch(size_t) override {}
  void gather(size_t) override {}
  void release(size_t) override {}
  void reduce(size_t part) override {
    if (parts_[part]->grad.defined()) comm_.all_reduce_sum(parts_[part]->grad);
  }
  void finish() override {}

 private:
  std::vector<Weights*> parts_;
  Comm& comm_;
};

}  // namespace sala
