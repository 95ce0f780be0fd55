// From a saved layout to the one that is to be filled: tensors are found by name.
#pragma once

#include <string>
#include <vector>

#include "model/weights/layout.h"

namespace sala {

// Empty when both have the same tensors with the same shapes, wherever they lie; else what differs
// first ("expected …, saved …").
std::string layout_difference(const Layout& expected, const Layout& saved);

// Same tensors at the same offsets, in the same order: flat buffers are the same, padding included.
bool same_places(const Layout& a, const Layout& b);

// Elements that follow each other in both: `count` from `saved` of the saved flat buffer go to
// `wanted` of the range.
struct Stretch {
  int64_t saved = 0, wanted = 0, count = 0;
};

// All stretches of the range [begin, end) of `wanted`'s flat buffer, in its order. Without
// padding, unless the layouts have the same places. layout_difference must be empty.
std::vector<Stretch> stretches(const Layout& saved, const Layout& wanted, int64_t begin,
                               int64_t end);

}  // namespace sala
