// The finished items of the score stage, on disk one by one: what a kill cannot take back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/files/file_calls.h"

namespace sala {

struct ScoreItem {
  int64_t document = 0, layer = 0;
  double plain = 0, recall = 0;  // mean KL, nats per token
};

// The file of one rank's finished items: one JSON line each with its own hash, on disk before the
// next begins.
class ScoreLog {
 public:
  ScoreLog(const std::string& folder, int rank);

  void append(const ScoreItem& item, const std::string& key);
  // What all ranks of all attempts have finished for `key`. A line that is torn, damaged or out of
  // range is no item: it is scored again.
  std::vector<ScoreItem> read(const std::string& key, int64_t num_documents,
                              int64_t num_layers) const;

 private:
  std::string folder_;
  Descriptor file_;
};

}  // namespace sala
