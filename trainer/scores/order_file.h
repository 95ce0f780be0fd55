// Layers in an order that somebody else found: a list, or the scores of another run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sala {

// Scores (L) of the layers in `path`, which is one of
//   text: layer numbers, the most important first, between spaces, commas or line ends; # begins a
//     comment that goes to the end of its line;
//   JSON: a list of the same numbers;
//   a scores.h5.
// Of a list of n layers the first scores n, the last 1, a layer that it lacks 0. Errors
// (std::runtime_error, one line): no such file, no number, no layer of the source, one named twice,
// a scores.h5 of a model with another number of layers.
std::vector<double> read_order_file(const std::string& path, int64_t num_layers);

}  // namespace sala
