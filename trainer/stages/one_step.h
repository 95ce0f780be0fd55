// A stage of one piece of work, which is done as a whole or not at all.
#pragma once

#include "trainer/checkpoint/checkpoints.h"
#include "trainer/stage.h"

namespace sala {

class OneStepStage : public Stage {
 public:
  bool advance(Run& run) final {
    if (done_) return false;
    work(run);
    done_ = true;
    return true;
  }
  void save(StateWriter& out) const final { out.json(type(), {{"done", done_}}); }
  void load(StateReader& in) final { done_ = in.json(type()).at("done").get<bool>(); }
  int64_t step() const final { return done_ ? 1 : 0; }
  int64_t num_steps() const final { return 1; }

 protected:
  virtual void work(Run& run) = 0;

 private:
  bool done_ = false;
};

}  // namespace sala
