// A scratch folder that all ranks of a test share.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "tests/mpi/test_world.h"
#include "tests/trainer/checkpoint_state.h"

namespace sala {

// Made and removed by rank 0.
class SharedFolder {
 public:
  explicit SharedFolder(const std::string& name) {
    if (test_world().rank() == 0) {
      mine_ = std::make_unique<ScratchFolder>(testing::TempDir() + "sala_ranks_" + name +
                                              std::to_string(getpid()));
    }
    path = test_world().broadcast(mine_ ? mine_->path : "");
  }
  ~SharedFolder() { test_world().barrier(); }
  std::string path;

 private:
  std::unique_ptr<ScratchFolder> mine_;
};

}  // namespace sala
