// The order of a source's documents in one epoch: a pure function of (seed, name, epoch, count), so
// a resumed run rebuilds it from three numbers.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace sala {

// A permutation of 0 .. count-1 by Fisher-Yates over a counter-based generator. count < 2^32.
std::vector<std::uint32_t> epoch_order(std::uint64_t seed, std::string_view source,
                                       std::int64_t epoch, std::int64_t count);

// The n-th value of a stream of 64 random bits (splitmix64: Steele, Lea, Flood 2014).
std::uint64_t counter_random(std::uint64_t key, std::uint64_t n);

// The n-th value of the stream, brought to 0 .. limit-1. limit >= 1.
std::uint64_t counter_random_below(std::uint64_t key, std::uint64_t n, std::uint64_t limit);

}  // namespace sala
