// `--profile N`: what N steps of each stage spend their time on, by LibTorch's profiler (Kineto).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

namespace sala {

class Profiler {
 public:
  // Of every stage that trains, `num_steps` are recorded (fewer where an evaluation comes between),
  // the ones before them to warm up where the stage is long enough; 0: none. Traces go to
  // FOLDER/profile/STAGE-rankR.json (Chrome's trace format; chrome://tracing and ui.perfetto.dev
  // open it).
  Profiler(std::string folder, int rank, at::Device device, int64_t num_steps);
  ~Profiler();

  // A stage begins; `num_left`: the steps that this start will make of it, 0 where it does not
  // train.
  void begin_stage(const std::string& name, int64_t num_left);
  void before_step();
  // After the last recorded step, or where something else than a step `follows`: the table, time by
  // range (kernels/range.h); else empty. What cannot be written is said there as well: it stops no
  // run.
  std::string after_step(bool something_else_follows);
  // The stage ends early, or throws: what was recorded is forgotten.
  void forget();

 private:
  std::string finish();

  std::string folder_;
  int rank_;
  at::Device device_;
  int64_t num_steps_;
  std::string stage_;
  int64_t step_ = 0;               // of this start in the stage
  int64_t first_ = 0, count_ = 0;  // recorded
  bool records_ = false;
};

}  // namespace sala
