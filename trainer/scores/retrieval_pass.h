// Where the teacher's attention looks when a planted fact is asked again (rows.h): heads that find
// the asked key and heads that copy its answer lie in few layers (retrieval heads, Wu et al.,
// arXiv:2404.15574), and those are what a linear layer does worst.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "trainer/run.h"
#include "trainer/scores/rows.h"

namespace sala {

class RetrievalPass {
 public:
  // Sums over the heads, means over positions: the share of attention
  struct Mass {
    double key = 0;     // of a key's tokens on where they stood before, and on what came after
    double answer = 0;  // of those that predict an answer on the token that is to be copied
  };
  // Of one layer. Ask for the layers of a row (known by its number) in order: one teacher pass
  // serves all. Weights are leased from the teacher: a collective where these are sharded.
  Mass operator()(Run& run, int64_t number, const ScoreRow& row, int64_t layer);

 private:
  int64_t number_ = -1, next_ = 0;
  Batch batch_;
  at::Tensor x_;  // (T, C) input of block next_
};

}  // namespace sala
