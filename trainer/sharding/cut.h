// How the flat buffer of a part is cut into equal shares, one per rank. Equal, because collectives
// want them so: the last shares may hold padding only, and then their range is empty.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sala {

struct Cut {
  int64_t num_elements = 0;  // of the part
  int64_t num_ranks = 1;
  int64_t share = 0;  // elements of one share, padding included

  Cut() = default;
  // ceil(n / R) elements, rounded up to 64: 128 bytes in bf16, as the layouts align.
  Cut(int64_t elements, int64_t ranks) : num_elements(elements), num_ranks(ranks) {
    share = ((elements + ranks - 1) / ranks + 63) / 64 * 64;
  }

  int64_t padded() const { return share * num_ranks; }
  int64_t begin(int64_t rank) const { return std::min(rank * share, num_elements); }
  int64_t end(int64_t rank) const { return begin(rank + 1); }
};

}  // namespace sala
