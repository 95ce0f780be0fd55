// Ranks as threads of one process: a Comm over shared memory whose sums go in rank order. A rank
// that throws ends the others' waits, so that a test fails instead of hanging.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/collectives.h"

namespace sala::test {

// What the ranks of one ThreadComm share.
class ThreadWorld {
 public:
  explicit ThreadWorld(int size) : slots_(size) {}
  int size() const { return static_cast<int>(slots_.size()); }

  // Every rank's tensor, from the moment that all have come until release().
  const std::vector<at::Tensor>& meet(int rank, const at::Tensor& mine) {
    slots_[rank] = mine;
    wait_for_all();
    return slots_;
  }
  void release() { wait_for_all(); }

  void put(int from, int to, const at::Tensor& x) {
    const std::lock_guard<std::mutex> lock(mutex_);
    mail_[{from, to}].push_back(x.clone());
    changed_.notify_all();
  }
  at::Tensor take(int from, int to) {
    std::unique_lock<std::mutex> lock(mutex_);
    auto& box = mail_[{from, to}];
    changed_.wait(lock, [&] { return broken_ || !box.empty(); });
    TORCH_CHECK(!box.empty(), "another rank failed");
    at::Tensor x = box.front();
    box.erase(box.begin());
    return x;
  }
  void fail() {
    const std::lock_guard<std::mutex> lock(mutex_);
    broken_ = true;
    changed_.notify_all();
  }

 private:
  void wait_for_all() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++arrived_ == size()) {
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return broken_ || round_ != round; });
    TORCH_CHECK(round_ != round, "another rank failed");
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<at::Tensor> slots_;
  std::map<std::pair<int, int>, std::vector<at::Tensor>> mail_;
  int arrived_ = 0;
  int64_t round_ = 0;
  bool broken_ = false;
};

class ThreadComm : public Comm {
 public:
  ThreadComm(ThreadWorld& world, int rank) : world_(world), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return world_.size(); }
  void all_reduce_sum(at::Tensor& x) override {
    const at::Tensor sum = sum_of(world_.meet(rank_, x), 0, x.numel());
    world_.release();
    x.copy_(sum.view(x.sizes()));
  }
  void broadcast(at::Tensor& x, int root) override {
    const at::Tensor theirs = world_.meet(rank_, x)[root];
    if (rank_ != root) x.copy_(theirs);
    world_.release();
  }
  void all_gather(at::Tensor& out, const at::Tensor& in) override {
    TORCH_CHECK(out.is_contiguous() && in.is_contiguous() && out.numel() == in.numel() * size(),
                "all_gather: expected ", size(), " times ", in.sizes(), ", got ", out.sizes());
    const auto& all = world_.meet(rank_, in);
    for (int r = 0; r < size(); ++r) {
      out.view(-1).narrow(0, r * in.numel(), in.numel()).copy_(all[r].view(-1));
    }
    world_.release();
    ++num_collectives;
  }
  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override {
    TORCH_CHECK(out.is_contiguous() && in.is_contiguous() && in.numel() == out.numel() * size(),
                "reduce_scatter: expected ", size(), " times ", out.sizes(), ", got ", in.sizes());
    out.copy_(sum_of(world_.meet(rank_, in), rank_ * out.numel(), out.numel()).view(out.sizes()));
    world_.release();
    ++num_collectives;
  }
  void send(const at::Tensor& x, int to) override { world_.put(rank_, to, x); }
  void receive(at::Tensor& x, int from) override { x.copy_(world_.take(from, rank_)); }

  int64_t num_collectives = 0;  // gathers and scatters

 private:
  static at::Tensor sum_of(const std::vector<at::Tensor>& all, int64_t begin, int64_t count) {
    at::Tensor sum = all[0].view(-1).narrow(0, begin, count).clone();
    for (size_t r = 1; r < all.size(); ++r) sum.add_(all[r].view(-1).narrow(0, begin, count));
    return sum;
  }

  ThreadWorld& world_;
  int rank_;
};

// Runs `body` on every rank, without gradient; throws the first rank's exception that is its own.
inline void on_ranks(int num_ranks, const std::function<void(ThreadComm&)>& body) {
  ThreadWorld world(num_ranks);
  std::exception_ptr first;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r) {
    threads.emplace_back([&, r] {
      const at::NoGradGuard no_grad;
      ThreadComm comm(world, r);
      try {
        body(comm);
      } catch (...) {
        {
          const std::lock_guard<std::mutex> lock(mutex);
          if (!first) first = std::current_exception();
        }
        world.fail();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace sala::test
