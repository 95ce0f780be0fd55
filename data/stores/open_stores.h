// Token stores that are open: the ones used last, so that ten thousand stores fit any limit of open
// files. Belongs to one thread at a time, as the files in it do.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>

#include "data/stores/token_store.h"

namespace sala {

class OpenStores {
 public:
  // Host memory of one: mostly HDF5's index of what it caches of a file.
  static constexpr std::int64_t kStoreBytes = 640 << 10;

  // As many as fit into a 256th of the machine's memory, 128 to 4096, and an eighth of the
  // process's limit of open files. To open one again takes a hundred times as long as to read a
  // document.
  OpenStores();

  // Opens it unless it is open; closes the one unused longest when there are too many, and more
  // when the system has no file left. Valid until the next call.
  const TokenStore& open(const std::string& path);
  void close(const std::string& path);
  size_t num_open() const { return stores_.size(); }
  size_t capacity() const { return capacity_; }

 private:
  size_t capacity_;
  std::list<TokenStore> stores_;  // used last comes first
  std::unordered_map<std::string, std::list<TokenStore>::iterator> where_;
};

}  // namespace sala
