// Which tokens of a stage's rows a teacher cache holds, and where: pieces of parts, by place in the
// stream of rows. Pieces may overlap (a step that was cut short is asked again): the first one that
// was added is read.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "data/teacher/part.h"

namespace sala {

class TopkIndex {
 public:
  struct Place {
    std::size_t part = 0, piece = 0;
    std::int64_t begin = 0, count = 0;  // tokens of the stream
    std::int64_t skip = 0;              // tokens of the piece before them
  };

  void add(std::size_t part, std::size_t piece, const TokenRange& range);
  bool covers(std::int64_t begin, std::int64_t end) const;
  std::int64_t num_tokens_before(std::int64_t end) const;
  // Of [begin, end), which must be covered, in order.
  std::vector<Place> places(std::int64_t begin, std::int64_t end) const;

 private:
  std::map<std::int64_t, Place> places_;  // by begin; no two overlap
};

}  // namespace sala
