// A model's folder, read by every rank for itself and compared: ranks that had read other weights
// would compute another model.
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
  bool verify = true;              // the files against the hashes that the folder states
};

// Parts that are `wanted`, one after the other, in the files' own type on the CPU, to `take`, which
// does not communicate. Values are finite, and all ranks have read the same, or all throw.
void read_on_all(World& world, const FolderReading& reading,
                 const std::function<bool(size_t part)>& wanted,
                 const std::function<void(size_t part, Weights& weights)>& take);

}  // namespace sala
