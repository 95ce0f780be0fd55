// How many persistent buffers of which size serve parts that are whole on a rank only while they
// are in use. The memory plan and the allocation both ask here.
#pragma once

#include <cstdint>
#include <vector>

namespace sala {

struct Pool {
  // Buffers of one size; the parts of the class take any of them.
  struct Class {
    int64_t num_elements = 0;  // of one buffer
    int64_t num_buffers = 0;
  };
  std::vector<Class> classes;
  std::vector<int64_t> class_of;  // per part; -1: it needs no buffer

  int64_t num_elements() const;  // of all buffers
};

// `sizes`: elements that each part needs, 0 for none. `units`: the parts that are in use together,
// in the order in which units follow each other, forward or backward; a part that is in none is a
// unit of its own. Two neighbours are in flight at once: the one at work, and the next one's gather
// or the last one's reduction. Sizes share a class where that needs less memory.
//
// `held`: a part that several units use keeps one buffer from the first of them to the last (the
// gradient of a tied embedding), so it has that for itself.
Pool plan_pool(const std::vector<int64_t>& sizes, const std::vector<std::vector<size_t>>& units,
               bool held);

}  // namespace sala
