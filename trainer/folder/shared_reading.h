// A model's folder, read once by the first rank and sent to the others: a thousand ranks do not ask
// one file system for the same gigabytes, and none can have read other weights.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/weights/layout.h"
#include "trainer/world.h"

namespace sala {

struct FolderReading {
  std::string folder;
  std::vector<LayoutPtr> layouts;  // of the whole model
  bool verify = true;  // the files against the hashes that the folder states, shared out over ranks
};

// Parts that are `wanted`, by all ranks alike, one after the other in the files' own type, on the
// CPU or the world's device, to `take`, which does not communicate. Values are finite and the
// same on all ranks, or all throw. Every rank looks at the files' headers, which must agree.
void read_on_all(World& world, const FolderReading& reading,
                 const std::function<bool(size_t part)>& wanted,
                 const std::function<void(size_t part, Weights& weights)>& take);

}  // namespace sala
