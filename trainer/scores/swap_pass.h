// One row through the teacher with one layer swapped for its aligned lightning mixer.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "trainer/run.h"
#include "trainer/scores/rows.h"

namespace sala {

class SwapPass {
 public:
  enum Measure {
    kKl,   // KL(teacher || swapped model) in nats
    kHit,  // 1 where the likeliest next token is the row's own, 0 at the last position
  };
  SwapPass(const Run& run, Measure measure);

  // The measure at every position, (T) fp64 on the CPU. One teacher pass per row (known by its
  // number) keeps every block's input, so that a swapped layer runs only the blocks from itself on:
  // ask for all layers of a row before the next. Weights are leased from the teacher and
  // run.aligned: a collective where these are sharded.
  at::Tensor operator()(Run& run, int64_t number, const ScoreRow& row, int64_t layer);

 private:
  void keep_inputs(Run& run, const ScoreRow& row);
  at::Tensor divergence(const at::Tensor& x, const at::Tensor& w, double scale) const;
  at::Tensor hits(const at::Tensor& x, const at::Tensor& w) const;

  Measure measure_;
  Model linear_;         // every layer lightning: its configuration and tables
  int64_t number_ = -1;  // of the row whose inputs are kept
  Batch batch_;
  std::vector<at::Tensor> inputs_;  // L of (T, C)
  at::Tensor final_;                // (T, C) after the final norm
};

}  // namespace sala
