// Token stores that are open: as many as memory and the limit of open files allow.
#pragma once

#include <cstdint>

#include "data/open_files.h"
#include "data/stores/token_store.h"

namespace sala {

class OpenStores : public OpenFiles<TokenStore> {
 public:
  // Host memory of one: mostly HDF5's index of what it caches of a file.
  static constexpr std::int64_t kStoreBytes = 640 << 10;

  // As many as fit into a 256th of the machine's memory, 128 to 4096, and an eighth of the
  // process's limit of open files. To open one again takes a hundred times as long as to read a
  // document.
  OpenStores();
};

}  // namespace sala
