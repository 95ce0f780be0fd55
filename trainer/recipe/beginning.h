// What the first stage of a run finds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sala {

// The source model alone, or the state that a checkpoint of another run brings
// (trainer/start/fork.h).
struct Beginning {
  std::string checkpoint;  // of --from; empty: the source alone
  int64_t stage = 0;    // where the recipe begins: the stages before it are behind the checkpoint
  int64_t step = 0;     // steps that the checkpoint has done of it
  bool mixers = false;  // aligned ones
  bool scores = false;
  bool model = false;         // a hybrid, or the source trained further
  bool hybrid = false;        // the former
  std::vector<int64_t> kept;  // its layers with softmax attention
  bool known = true;          // false: nothing can be said of the stages' order
};

}  // namespace sala
