// The order of a source's documents in one epoch: computed where it is asked for, from (seed, name,
// epoch, count), so that it takes no memory and a resumed run needs three numbers to go on.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace sala {

// A permutation of 0 .. count-1: a Feistel network over the next power of four, walked along its
// cycle until it falls below count (Black and Rogaway 2002; fewer than four steps on average).
class EpochOrder {
 public:
  // count >= 1.
  EpochOrder(std::uint64_t seed, std::string_view source, std::int64_t epoch, std::int64_t count);

  // The document that comes at `position` of the epoch, 0 <= position < count.
  std::int64_t document(std::int64_t position) const;

 private:
  static constexpr int kRounds = 8;  // 4 are enough for large counts; small ones need more
  std::array<std::uint64_t, kRounds> keys_;
  std::uint64_t count_;
  int half_bits_;
};

// The n-th value of a stream of 64 random bits (splitmix64: Steele, Lea, Flood 2014).
std::uint64_t counter_random(std::uint64_t key, std::uint64_t n);

// The n-th value of the stream, brought to 0 .. limit-1. limit >= 1.
std::uint64_t counter_random_below(std::uint64_t key, std::uint64_t n, std::uint64_t limit);

}  // namespace sala
