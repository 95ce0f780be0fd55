// What the time of a step goes into, as the device spends it: on a GPU by events on the stream that
// computes, on a CPU by the wall clock. Nothing here waits for the device but read().
#pragma once

#include <c10/core/Device.h>

#include <array>
#include <memory>

#include "kernels/collectives.h"

namespace sala {

enum class Phase {
  kData,           // waiting for rows and a kept teacher's words, to the device and from it
  kForward,        // with the teacher's
  kBackward,       // with what recomputing makes again
  kCommunication,  // waiting for other ranks, beyond what computing hides
  kOptimizer,      // the norm that decides, and the update
  kCount
};
inline constexpr std::array<const char*, 5> kPhaseNames = {"data", "forward", "backward",
                                                           "communication", "optimizer"};
using PhaseSeconds = std::array<double, static_cast<size_t>(Phase::kCount)>;

class StepClock {
 public:
  explicit StepClock(c10::Device device);
  ~StepClock();

  // What follows belongs to `phase`. The first call of a step starts its clock.
  void enter(Phase phase);
  // What follows is waiting for other ranks; leave() goes back to the phase before.
  void wait_begins() { enter_keeping(Phase::kCommunication); }
  void wait_ends() { enter_keeping(phase_); }
  // Ends the step and gives its seconds by phase; waits until the device is there.
  PhaseSeconds read();

 private:
  void enter_keeping(Phase phase);
  struct Impl;
  std::unique_ptr<Impl> impl_;
  Phase phase_ = Phase::kData;
};

// Waiting for as long as it lives; a null clock is none.
class Waiting {
 public:
  explicit Waiting(StepClock* clock) : clock_(clock) {
    if (clock_) clock_->wait_begins();
  }
  ~Waiting() {
    if (clock_) clock_->wait_ends();
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  StepClock* clock_;
};

// A communicator whose calls count as waiting.
class WaitingComm : public Comm {
 public:
  WaitingComm(Comm& comm, StepClock* clock) : comm_(comm), clock_(clock) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  void all_reduce_sum(at::Tensor& x) override {
    const Waiting waiting(clock_);
    comm_.all_reduce_sum(x);
  }
  void broadcast(at::Tensor& x, int root) override {
    const Waiting waiting(clock_);
    comm_.broadcast(x, root);
  }
  void all_gather(at::Tensor& out, const at::Tensor& in) override {
    const Waiting waiting(clock_);
    comm_.all_gather(out, in);
  }
  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override {
    const Waiting waiting(clock_);
    comm_.reduce_scatter_sum(out, in);
  }
  void send(const at::Tensor& x, int to) override {
    const Waiting waiting(clock_);
    comm_.send(x, to);
  }
  void receive(at::Tensor& x, int from) override {
    const Waiting waiting(clock_);
    comm_.receive(x, from);
  }
  CommState state() override { return comm_.state(); }

 private:
  Comm& comm_;
  StepClock* clock_;
};

}  // namespace sala
