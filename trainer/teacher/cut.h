// A cut teacher in the steps of a stage: asked on the spot, or read from a cache that an earlier
// run has filled. Either way a step gets the same bits: what is asked is rounded as it is stored.
#pragma once

#include <cstdint>
#include <vector>

#include "data/loader.h"
#include "trainer/network.h"
#include "trainer/teacher/cache.h"
#include "trainer/teacher/packed.h"

namespace sala {

class CutTeacher {
 public:
  // `network`: null where `cache` is complete. `cache`: null where nothing is kept.
  CutTeacher(World& world, Network* network, std::unique_ptr<TeacherCache> cache,
             const TopkFormat& format, double temperature, int64_t row_length)
      : world_(world),
        network_(network),
        cache_(std::move(cache)),
        format_(format),
        temperature_(temperature),
        row_length_(row_length) {}

  // Before and after the passes of a step, for all ranks together; `rows` are this rank's. A cache
  // that was filled from other rows than these is an error.
  void begin_step(const StepRows& rows);
  void end_step();
  // Of a step without targets, at which nothing is asked: so that it leaves no hole.
  void pass_over(const StepRows& rows);
  // Of the step's next micro-batch, in order. All ranks ask together where the step is not cached.
  TopkTeacher of(const Batch& batch);
  // What is kept so far becomes durable: Loss::make_durable.
  std::shared_future<void> make_durable() const {
    return cache_ ? cache_->make_durable() : std::shared_future<void>();
  }

 private:
  struct Asked {
    int64_t first = 0;  // token of this rank's rows
    PackedTopk packed;
  };

  PackedTopk ask(const Batch& batch) const;
  PackedTopk cached(int64_t first, int64_t count, at::Device device) const;
  PackedTopk of_idle(int64_t count, at::Device device) const;
  void read_step(int64_t next);

  World& world_;
  Network* network_;
  std::unique_ptr<TeacherCache> cache_;
  TopkFormat format_;
  double temperature_;
  int64_t row_length_;

  TopkTokens step_;  // this rank's rows: their tokens, and what the cache says of them
  bool is_cached_ = false;
  int64_t next_ = 0;  // token of the rows at which the next micro-batch begins
  std::vector<Asked> asked_;
};

}  // namespace sala
