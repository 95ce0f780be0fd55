// Reading a checkpoint's tensors and checking them against the manifest.
#pragma once

#include <string>

#include "trainer/checkpoint/manifest.h"

namespace sala {

// Reads the whole shard from `folder` and compares its hash; empty when it is right, else one line
// that names the file and what is wrong. With `fill`, its elements go to [offset, offset + count)
// of it (flat; any device and floating dtype).
std::string shard_problem(const std::string& folder, const Shard& shard,
                          at::Tensor* fill = nullptr);

std::unique_ptr<StateReader> make_checkpoint_reader(const std::string& checkpoint_folder);

}  // namespace sala
