// What the score stage has finished, on disk one by one: what a kill cannot take back.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/files/file_calls.h"

namespace sala {

// The file of one rank's finished items: one JSON line each with its own hash, on disk before the
// next begins.
class ItemLog {
 public:
  ItemLog(const std::string& folder, int rank);

  // `item`: an object; "key" and "xxh3" are added to it.
  void append(nlohmann::json item, const std::string& key);
  // What all ranks of all attempts have finished for `key`, file by file. A line that is torn or
  // damaged is no item: it is made again.
  std::vector<nlohmann::json> read(const std::string& key) const;

 private:
  std::string folder_;
  Descriptor file_;
};

}  // namespace sala
